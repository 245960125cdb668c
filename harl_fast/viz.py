"""Pictures of a container: the contact sheet of what the network gets, and its masks' statistics.

Everything shown comes from the training loader and the modules it uses, so that a disagreement of
outline, crop, flip and cells would be visible.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from harl_fast.config import RunConfig
from harl_fast.data.container.maskfield import pack_mask
from harl_fast.data.container.reader import StoredSample, read_samples
from harl_fast.data.loader import BetonLoader
from harl_fast.data.occupancy import Occupancy, histogram
from harl_fast.data.views.color_device import Photometric
from harl_fast.data.views.crop import ViewGeometry, draw_view, fill_integral, geometry_table
from harl_fast.engine.provenance import code_version
from harl_fast.engine.views import view_geometry, views_at
from harl_fast.files import write_bytes
from harl_fast.host import utc_time
from harl_fast.rng import GEOMETRY, stream

TILE_PX = 192
_GAP_PX = 6
_PANEL_PX, _EDGE_PX = 260, 40
_OUTLINE = (255, 220, 0)
_BOXES = ((0, 200, 255), (255, 80, 160), (120, 255, 80), (255, 150, 40))
"""Colours of the views' boxes, in turn."""
_INK, _PAPER, _BAR = (230, 230, 230), 24, (0, 160, 210)

Picture = npt.NDArray[np.uint8]


def contact_sheet(
    beton: Path,
    config: RunConfig,
    out: Path,
    *,
    count: int = 8,
    ids: Sequence[int] = (),
    epoch: int = 0,
) -> None:
    """Write a PNG of the first ``count`` samples of an epoch under ``config``, or of given ``ids``.

    A row a sample: the original with its id, its mask's outline and all boxes (a small corner mark
    shows where the view's top left comes from, so a flip is visible); then each view in the colours
    the network receives, and the same view with its cells: the brighter, the more foreground.
    Raises DataError when the container or a sample is damaged or has no such id.
    """
    views = view_geometry(config, epoch=epoch)
    loader = BetonLoader(beton, views=views, batch_global=1, batch_micro=1, seed=config.seed)
    try:
        chosen = list(ids) or loader.order.rank_samples(epoch)[:count].tolist()
        colour = Photometric(
            views_at(config, epoch=epoch),
            mean=config.data.mean,
            std=config.data.std,
            seed=config.seed,
        )
        about = {
            "container": str(beton),
            "beton_sha256": loader.manifest.beton_sha256,
            "epoch": epoch,
            "samples": chosen,
            "config": config.model_dump(mode="json"),
        }
        rows = []
        shown = loader.shown(chosen, epoch=epoch)
        originals = read_samples(beton, chosen)
        for sample, batch in zip(originals, shown, strict=True):
            tiles = [_original(sample, views, config.seed, epoch)]
            for view, pixels in enumerate(batch.views):
                coloured = colour(pixels, view=view, ids=[sample.id], epoch=epoch)
                seen = _shown(coloured, colour)[0]
                tiles += [_tile(seen), _with_cells(seen, batch.cells[view][0].numpy())]
            rows.append(np.concatenate([_framed(tile) for tile in tiles], axis=1))
    finally:
        loader.close()
    write_png(out, np.concatenate(rows, axis=0), about=about)


def occupancy_chart(found: Occupancy, out: Path, *, about: Mapping[str, Any]) -> None:
    """Write a PNG: how many masks cover how much, and each view's mean foreground share by cell.

    about: as for `write_png`.
    """
    panels = [_bars(histogram(found.coverage), f"mask coverage, {len(found.coverage)} samples")]
    for view, grid in enumerate(found.cells):
        panels.append(_heat(grid, f"view {view}: {grid.mean():.0%} foreground"))
    write_png(out, np.concatenate(panels, axis=1), about=about)


def write_png(out: Path, picture: Picture, *, about: Mapping[str, Any]) -> None:
    """Write (H, W, 3) uint8 RGB pixels as a PNG, in one atomic step.

    about: what the picture was made from; kept as JSON in its "Description", with code and time.
    """
    text = PngInfo()
    text.add_itxt("Description", json.dumps({**about, "code": code_version(), "time": utc_time()}))
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", pnginfo=text, compress_level=1)
    write_bytes(out, stream.getvalue())


def _panel(title: str) -> Picture:
    panel = np.full((_PANEL_PX + 2 * _EDGE_PX, _PANEL_PX + 2 * _EDGE_PX, 3), _PAPER, np.uint8)
    _write(panel, title, _EDGE_PX, _EDGE_PX - 12)
    return panel


def _write(panel: Picture, text: str, x: int, y: int) -> None:
    cv2.putText(panel, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)


def _bars(counts: npt.NDArray[np.int64], title: str) -> Picture:
    """Draw a histogram by tenths of [0, 1]."""
    panel, width = _panel(title), _PANEL_PX // len(counts)
    for place, count in enumerate(counts.tolist()):
        height = round(_PANEL_PX * count / max(counts.max(), 1))
        left, foot = _EDGE_PX + place * width, _EDGE_PX + _PANEL_PX
        if count:
            cv2.rectangle(panel, (left + 2, foot - height), (left + width - 3, foot), _BAR, -1)
        if place % 2 == 0:
            _write(panel, f"{place * 10}%", left - 6, foot + 18)
    _write(panel, "100%", _EDGE_PX + _PANEL_PX - 16, _EDGE_PX + _PANEL_PX + 18)
    return panel


def _heat(grid: npt.NDArray[np.float64], title: str) -> Picture:
    """Draw a grid of shares, black for 0 and white for 1, with their numbers if they fit."""
    panel, cells = _panel(title), len(grid)
    edges = (_EDGE_PX + np.linspace(0, _PANEL_PX, cells + 1)).round().astype(int).tolist()
    for row in range(cells):
        for column in range(cells):
            share = float(grid[row, column])
            corner, end = (edges[column], edges[row]), (edges[column + 1] - 2, edges[row + 1] - 2)
            cv2.rectangle(panel, corner, end, (round(255 * share),) * 3, -1)
            if cells <= 8:
                ink = (255, 220, 0) if share < 0.6 else (120, 0, 0)
                at = (corner[0] + 4, (corner[1] + end[1]) // 2 + 4)
                text = f"{share:.0%}"
                cv2.putText(panel, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, ink, 1, cv2.LINE_AA)
    return panel


def _shown(normalised: torch.Tensor, colour: Photometric) -> Picture:
    """Undo the normalisation: (B, 3, S, S) float32 to (B, S, S, 3) uint8."""
    pixels = normalised * colour.std[:, None, None] + colour.mean[:, None, None]
    return (pixels.permute(0, 2, 3, 1) * 255.0).round().clamp(0, 255).to(torch.uint8).numpy()


def _tile(picture: Picture) -> Picture:
    """Scale a picture to fit a tile, on black."""
    height, width = picture.shape[:2]
    scale = TILE_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    tile = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    shown = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else 0)
    tile[: size[1], : size[0]] = shown
    return tile


def _framed(tile: Picture) -> Picture:
    return np.pad(tile, ((0, _GAP_PX), (0, _GAP_PX), (0, 0)), constant_values=40)


def _original(sample: StoredSample, views: list[ViewGeometry], seed: int, epoch: int) -> Picture:
    tile = _tile(sample.image)
    height, width = sample.image.shape[:2]
    scale = TILE_PX / max(height, width)
    mask = cv2.resize(
        sample.mask.astype(np.uint8),
        (max(1, round(width * scale)), max(1, round(height * scale))),
        interpolation=cv2.INTER_NEAREST,
    )
    contours = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(tile, contours, -1, _OUTLINE, 1)
    integral = np.empty((len(sample.mask) + 1, len(sample.mask) + 1), np.int32)
    fill_integral(pack_mask(sample.mask), len(sample.mask), integral)
    for view, row in enumerate(geometry_table(views)):
        key = np.uint64(stream(seed, epoch, sample.id, view, GEOMETRY))
        top, left, box_h, box_w, flip, vflip = draw_view(key, height, width, row, integral)
        corners = np.array([left, top, left + box_w, top + box_h]) * scale
        x0, y0, x1, y1 = corners.round().astype(int).tolist()
        colour = _BOXES[view % len(_BOXES)]
        cv2.rectangle(tile, (x0, y0), (x1 - 1, y1 - 1), colour, 1)
        mark = x1 - 6 if flip else x0
        mark_y = y1 - 6 if vflip else y0
        cv2.rectangle(tile, (mark, mark_y), (mark + 5, mark_y + 5), colour, -1)
    for ink, thick in (((0, 0, 0), 3), (_INK, 1)):
        cv2.putText(
            tile, str(sample.id), (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, ink, thick, cv2.LINE_AA
        )
    return tile


def _with_cells(picture: Picture, cells: npt.NDArray[np.float32]) -> Picture:
    tile = _tile(picture)
    shade = cv2.resize(cells, (TILE_PX, TILE_PX), interpolation=cv2.INTER_NEAREST)[..., None]
    mixed: Picture = (tile * (0.25 + 0.75 * shade)).astype(np.uint8)
    for edge in np.linspace(0, TILE_PX, len(cells) + 1).round().astype(int)[1:-1].tolist():
        mixed[edge, :] = mixed[edge, :] // 2 + 60
        mixed[:, edge] = mixed[:, edge] // 2 + 60
    return mixed
