"""What a container's masks cover, and what is left of them in the cells of random crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harl_fast.data.order import spread
from harl_fast.data.reader import OpenContainer
from harl_fast.data.views.cells import cell_coverage, fill_integral
from harl_fast.data.views.crop import ViewGeometry, draw_view, geometry_table
from harl_fast.errors import DataError
from harl_fast.rng import GEOMETRY, stream

SAMPLES = 2000
"""Enough for shares within about one percent point; evenly spaced over the container."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Occupancy:
    """Statistics of masks and cells."""

    coverage: Floats
    """(N,) foreground share of each mask looked at, in [0, 1]."""
    cells: tuple[Floats, ...]
    """Per view one (h, w) grid: mean foreground share of each cell over the crops."""
    per_crop: tuple[Floats, ...]
    """Per view (N,): the share of each crop that is foreground."""


def occupancy(
    beton: Path, views: Sequence[ViewGeometry], *, seed: int, epoch: int = 0, most: int = SAMPLES
) -> Occupancy:
    """Return the statistics of at most ``most`` samples under the crops of an epoch.

    No image is decoded. The crops are those that the training loader would take. Raises DataError
    when the container is not sound.
    """
    container, table = OpenContainer(beton), geometry_table(views)
    stored, size = container.stored, container.stored.mask_size
    ids = spread(container.manifest.count, most)
    coverage = np.zeros(len(ids))
    grids = [np.zeros((len(ids), view.cells, view.cells), np.float32) for view in views]
    integral = np.zeros((size + 1, size + 1), np.int32)
    for row, sample in enumerate(ids.tolist()):
        packed, row_of = container.mask_bytes(sample), stored.rows[sample]
        if packed is None:
            raise DataError(f"{beton}: sample {sample} has no mask. Write it again: `make beton`")
        height, width = int(row_of["height"]), int(row_of["width"])
        fill_integral(packed, size, integral)
        coverage[row] = integral[-1, -1] / size**2
        for view, grid in enumerate(grids):
            key = np.uint64(stream(seed, epoch, sample, view, GEOMETRY))
            placed = draw_view(key, height, width, table[view], integral)
            cell_coverage(packed, size, height, width, placed, grid[row])
    means = [grid.mean(axis=0, dtype=np.float64) for grid in grids]
    shares = [grid.mean(axis=(1, 2), dtype=np.float64) for grid in grids]
    return Occupancy(coverage, tuple(means), tuple(shares))


def occupancy_text(found: Occupancy) -> str:
    """Return the statistics as lines for a terminal."""
    low, middle, high = np.percentile(found.coverage, [5, 50, 95]).tolist()
    lines = [
        f"mask coverage of {len(found.coverage):,} samples: mean {found.coverage.mean():.1%}, "
        f"median {middle:.1%}, 5 to 95 % of them {low:.1%} to {high:.1%}, "
        f"empty {(found.coverage == 0).mean():.1%}, full {(found.coverage == 1).mean():.1%}"
    ]
    counts = histogram(found.coverage)
    longest = max(counts.max(), 1)
    for place, count in enumerate(counts.tolist()):
        bar = "#" * round(40 * count / longest)
        lines.append(f"  {place * 10:3d} to {place * 10 + 10:3d} %  {count:7,d}  {bar}".rstrip())
    for view, (grid, crops) in enumerate(zip(found.cells, found.per_crop, strict=True), start=1):
        lines.append(
            f"cells of view {view}: mean {grid.mean():.1%}, from {grid.min():.1%} to "
            f"{grid.max():.1%}; crops without foreground {(crops == 0).mean():.1%}, "
            f"without background {(crops == 1).mean():.1%}"
        )
        lines += ["  " + " ".join(f"{share:4.0%}" for share in row) for row in grid.tolist()]
    return "\n".join(lines)


def histogram(coverage: Floats) -> npt.NDArray[np.int64]:
    """Return (10,) counts of shares by tenths of [0, 1]."""
    return np.histogram(coverage, bins=10, range=(0.0, 1.0))[0].astype(np.int64)
