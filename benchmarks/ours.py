"""Our loader as the benchmark runs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harl_fast.config import DataConfig
from harl_fast.data.loader import BetonLoader
from harl_fast.data.views import color_device as photometric
from harl_fast.data.views.crop import ViewGeometry

POLICY = DataConfig()
"""BYOL's two views; the peers' settings are read from it too."""
CELLS = 7


def geometries(*, background_p: float = 0.0) -> list[ViewGeometry]:
    """Return the two views' geometry."""
    return [
        replace(ViewGeometry.of(view, cells=CELLS), background_p=background_p)
        for view in POLICY.views
    ]


def make(settings: dict[str, Any]) -> BetonLoader:
    """Return the loader of one rank that takes whole global batches."""
    options: dict[str, Any] = {
        "views": geometries(background_p=settings.get("background_p", 0.0)),
        "batch_global": settings["batch"],
        "batch_micro": settings["batch"],
        "workers": settings["threads"],
        "batches_ahead": settings.get("ahead", 3),
        "check": settings.get("check", "checksum"),
    }
    if settings.get("coloured"):
        options["colour"] = photometric.Colouring(POLICY.views, POLICY.mean, POLICY.std)
    return BetonLoader(Path(settings["container"]), **options)


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """Yield (samples, batch) for ever; (0, None) opens each epoch.

    coloured: views are float32, normalised.
    """
    loader = make(settings)
    while True:
        yield 0, None
        for batch in loader:
            yield len(batch.ids), batch
