"""Foreground masks: methods and mask files; see `preprocess.masks.registry` for the table."""

from typing import Any

__all__ = ["MASK_METHODS", "find_mask", "open_method", "parse_spec"]


def __getattr__(name: str) -> Any:
    """Import the methods, which take seconds, when one of the names is used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from preprocess.masks import registry

    return getattr(registry, name)
