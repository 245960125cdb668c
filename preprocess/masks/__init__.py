"""Foreground masks: methods, mask files, caches; see `preprocess.masks.methods` for the table."""

from preprocess.masks.methods import METHODS, find_mask, open_method, parse_spec

__all__ = ["METHODS", "find_mask", "open_method", "parse_spec"]
