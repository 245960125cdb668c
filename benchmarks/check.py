"""Is a contender's output what it should be? Shapes, types, ranges, and traces of every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
GREY_SPREAD = 0.02
"""A view whose channels differ by less than this share of the range has lost its colour."""


def describe(items: Iterator[tuple[int, Any]], *, batches: int) -> dict[str, Any]:
    """Return what the first batches hold, as numbers and texts that a reader can judge."""
    kept: list[list[Array]] = []
    for count, batch in items:
        if count:
            kept.append([np.array(part) for part in _arrays(batch)])
        if len(kept) == batches:
            break
    parts = [np.concatenate(column) for column in zip(*kept, strict=True)]
    return {f"output {place}": _facts(part) for place, part in enumerate(parts)} | _pair(parts)


def _arrays(batch: Any) -> list[Any]:
    if hasattr(batch, "views"):
        return [*batch.views, *batch.cells, batch.labels]
    return [batch[None]] if isinstance(batch, np.ndarray) else list(batch)


def _facts(part: Array) -> dict[str, Any]:
    values = part.astype(np.float64)
    facts: dict[str, Any] = {
        "shape": list(part.shape[1:]),
        "dtype": str(part.dtype),
        "least": round(float(values.min()), 4),
        "most": round(float(values.max()), 4),
        "mean": round(float(values.mean()), 4),
        "deviation": round(float(values.std()), 4),
    }
    if part.ndim == 4:
        facts |= _traces(part)
    return facts


def _traces(view: Array) -> dict[str, float]:
    """Return what a view's operations leave behind: greys, and the strength of fine detail."""
    planes = view.transpose(0, 3, 1, 2) if view.shape[-1] == 3 else view
    planes = planes.astype(np.float64)
    if view.dtype != np.uint8:  # BYOL's normalisation undone
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        planes = (planes * std[:, None, None] + mean[:, None, None]) * 255
    spread = (planes.max(1) - planes.min(1)).mean((1, 2)) / 255
    detail = np.abs(np.diff(planes, axis=3)).mean((1, 2, 3))
    brightness = planes.mean((1, 2, 3))
    return {
        "grey share": round(float((spread < GREY_SPREAD).mean()), 3),
        "detail median": round(float(np.median(detail)), 3),
        "brightness deviation": round(float(brightness.std()), 2),
        "different pictures": len(np.unique(np.round(brightness, 6))),
    }


def _pair(parts: list[Array]) -> dict[str, Any]:
    views = [part for part in parts if part.ndim == 4]
    if len(views) < 2:
        return {}
    same = (views[0].reshape(len(views[0]), -1) == views[1].reshape(len(views[1]), -1)).all(1)
    return {"samples": len(views[0]), "samples whose two views are equal": int(same.sum())}
