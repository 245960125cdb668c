"""What a stored mask of S x S bits loses at the cells of random crops, against the full mask.

The true masks say what storing alone costs; masks that a method found, what it costs beside the
method's own errors.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harl_fast.options import whole_number
from harl_fast.program import head, run_main


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mask_storage", description=__doc__)
    parser.add_argument("--horses", type=Path, metavar="FOLDER", help="images/ and masks/")
    parser.add_argument("--composites", type=whole_number(1, 10**6), default=200, metavar="N")
    return parser.parse_args(argv)


with head(__name__, parse):
    import numpy as np
    import numpy.typing as npt

    from benchmarks import mask_sets
    from benchmarks.mask_sets import Case
    from harl_fast.data.container.fields import pack_mask, resize_mask
    from harl_fast.data.views.cells import cell_coverage
    from harl_fast.data.views.crop import ViewGeometry, draw_view, geometry_table
    from harl_fast.rng import GEOMETRY, stream
    from preprocess.images.arrays import Mask
    from preprocess.masks.selftrained.score import CELLS, soft_jaccard

SIZES = (32, 64, 112, 128, 224)
SCALES = ((0.08, 1.0), (0.2, 1.0))
"""The views' ranges of area; the first is the paper's."""
CROPS = 16
"""Crops of each mask and range."""
VIEW_PX = 224

Grid = npt.NDArray[np.float64]


def measure(
    sets: Mapping[str, Sequence[Case]],
    *,
    sizes: Sequence[int] = SIZES,
    found: Mapping[str, Sequence[Mask]] | None = None,
) -> dict[str, Any]:
    """Return by set, range of scale and size how far stored cells are from the full true mask's.

    iou: mean over crops of the soft Jaccard of the cells; iou_low: its 5th percentile; difference:
    mean absolute difference of a cell's share. Crops without foreground in any mask are left out.
    found: by set, the masks to store, (S', S') bool over each image; the true ones without it.
    """
    results: dict[str, Any] = {}
    for name, cases in sets.items():
        masks = found[name] if found else [case.truth for case in cases]
        for scale in SCALES:
            view = ViewGeometry(size_px=VIEW_PX, cells=CELLS, scale=scale)
            crops: list[dict[int, Grid]] = []
            for place, (case, mask) in enumerate(zip(cases, masks, strict=True)):
                crops += _crops(case.truth, mask, place, view, sizes)
            text = f"{name}, scale {scale[0]:g} to {scale[1]:g}"
            results[text] = {size: _losses(crops, size) for size in sizes}
    return results


def _crops(
    truth: Mask, mask: Mask, place: int, view: ViewGeometry, sizes: Sequence[int]
) -> list[dict[int, Grid]]:
    """Return the cells of some crops from the true mask (key 0) and from each stored size."""
    height, width = truth.shape
    (row,), unread = geometry_table([view]), np.zeros((1, 1), np.int32)
    packed = {size: pack_mask(resize_mask(mask, size=size)) for size in sizes}
    integral = np.zeros((height + 1, width + 1))
    integral[1:, 1:] = truth.cumsum(axis=0).cumsum(axis=1)
    crops = []
    for crop in range(CROPS):
        key = np.uint64(stream(0, crop, place, 0, GEOMETRY))
        placed = draw_view(key, height, width, row, unread)
        cells = {0: full_cells(integral, placed, CELLS)}
        for size, bits in packed.items():
            grid = np.zeros((CELLS, CELLS), np.float32)
            cell_coverage(bits, size, height, width, placed, grid)
            cells[size] = grid.astype(np.float64)
        if any(grid.any() for grid in cells.values()):
            crops.append(cells)
    return crops


def full_cells(integral: Grid, placed: tuple[int, int, int, int, bool, bool], cells: int) -> Grid:
    """Return the cells' foreground shares from the full mask, exact but for rounding.

    integral: (H + 1, W + 1) counts of foreground before each corner. Between corners the area
    grows linearly along each axis, for the mask is constant within a pixel.
    """
    top, left, box_h, box_w, flip, vflip = placed
    rows = _at(integral, top + np.arange(cells + 1) * (box_h / cells))
    area = _at(np.ascontiguousarray(rows.T), left + np.arange(cells + 1) * (box_w / cells)).T
    grid = np.diff(np.diff(area, axis=0), axis=1) * (cells * cells / (box_h * box_w))
    grid = grid[::-1] if vflip else grid
    return np.clip(grid[:, ::-1] if flip else grid, 0.0, 1.0)


def _at(integral: Grid, edges: Grid) -> Grid:
    """Return rows of the integral at edges between its rows."""
    whole = np.minimum(edges.astype(np.int64), len(integral) - 2)
    part = (edges - whole)[:, None]
    return integral[whole] * (1 - part) + integral[whole + 1] * part


def _losses(crops: Sequence[Mapping[int, Grid]], size: int) -> dict[str, float]:
    overlaps = [soft_jaccard(cells[size], cells[0]) for cells in crops]
    return {
        "iou": float(np.mean(overlaps)),
        "iou_low": float(np.percentile(overlaps, 5)),
        "difference": float(np.mean([np.abs(cells[size] - cells[0]).mean() for cells in crops])),
        "crops": len(crops),
        "bytes": size * size // 8,
    }


def table(found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """Return the losses as text."""
    heads = ("S", "bytes", "cells IoU", "5th perc.", "difference")
    lines = [f"{'stored masks':<42}" + "".join(f"{head:>12}" for head in heads)]
    for name, sizes in found.items():
        for size, loss in sizes.items():
            figures = f"{loss['iou']:>12.4f}{loss['iou_low']:>12.4f}{loss['difference']:>12.4f}"
            lines.append(f"{name:<42}{size:>12}{loss['bytes']:>12,}{figures}")
            name = ""
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the table alone."""
    args = parse(argv)
    sets = {"drawn composites": mask_sets.drawn(args.composites)}
    if args.horses:
        sets = {"horses": mask_sets.horses(args.horses)} | sets
    print(table(measure(sets)))
    return 0


if __name__ == "__main__":
    run_main(main)
