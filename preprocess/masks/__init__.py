"""Foreground masks: methods, mask files, caches; see `preprocess.masks.registry` for the table."""

from preprocess.masks.registry import MASK_METHODS, find_mask, open_method, parse_spec

__all__ = ["MASK_METHODS", "find_mask", "open_method", "parse_spec"]
