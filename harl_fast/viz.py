"""The contact sheet: originals with mask outlines, views as the network gets them, their cells.

Everything shown comes from the training loader and the modules it uses, so that a disagreement of
outline, crop, flip and cells would be visible.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from harl_fast.config import RunConfig
from harl_fast.data.geometry import ViewGeometry, draw_view, geometry_table
from harl_fast.data.loader import BetonLoader
from harl_fast.data.photometric import Photometric
from harl_fast.data.stored import StoredSample, read_samples
from harl_fast.engine.views import view_geometry
from harl_fast.files import replacing
from harl_fast.rng import GEOMETRY, stream

TILE_PX = 192
_GAP_PX = 6
_OUTLINE = (255, 220, 0)
_BOXES = ((0, 200, 255), (255, 80, 160))
"""Colours of the first and of the second view's box."""

Picture = npt.NDArray[np.uint8]


def contact_sheet(beton: Path, config: RunConfig, out: Path, *, count: int = 8) -> None:
    """Write a PNG of ``count`` samples of the first training batch of ``config``.

    A row a sample: the original with its mask's outline and both boxes (a small corner mark shows
    where the view's top left comes from, so a flip is visible); then each view in the colours the
    network receives, and the same view with its cells: the brighter, the more foreground.
    """
    views = view_geometry(config)
    loader = BetonLoader(
        beton, views=views, batch_global=count, batch_micro=count, seed=config.seed
    )
    batch = next(iter(loader))
    colour = Photometric(
        config.data.views, mean=config.data.mean, std=config.data.std, seed=config.seed
    )
    ids = batch.ids.numpy()
    seen = [
        _shown(colour(pixels, view=view, ids=ids, epoch=0), colour)
        for view, pixels in enumerate(batch.views)
    ]
    cells = [grid.numpy().copy() for grid in batch.cells]
    loader.close()
    rows = []
    for row, sample in enumerate(read_samples(beton, ids.tolist())):
        tiles = [_original(sample, views, config.seed)]
        for view in range(len(views)):
            tiles += [_tile(seen[view][row]), _with_cells(seen[view][row], cells[view][row])]
        rows.append(np.concatenate([_framed(tile) for tile in tiles], axis=1))
    sheet = np.concatenate(rows, axis=0)
    with replacing(out) as temporary:
        encoded = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1]
        temporary.write_bytes(encoded.tobytes())


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


def _original(sample: StoredSample, views: list[ViewGeometry], seed: int) -> Picture:
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
    for view, row in enumerate(geometry_table(views)):
        key = np.uint64(stream(seed, 0, sample.id, view, GEOMETRY))
        top, left, box_h, box_w, flip, vflip = draw_view(key, height, width, row)
        corners = np.array([left, top, left + box_w, top + box_h]) * scale
        x0, y0, x1, y1 = corners.round().astype(int).tolist()
        cv2.rectangle(tile, (x0, y0), (x1 - 1, y1 - 1), _BOXES[view % 2], 1)
        mark = x1 - 6 if flip else x0
        mark_y = y1 - 6 if vflip else y0
        cv2.rectangle(tile, (mark, mark_y), (mark + 5, mark_y + 5), _BOXES[view % 2], -1)
    return tile


def _with_cells(picture: Picture, cells: npt.NDArray[np.float32]) -> Picture:
    tile = _tile(picture)
    shade = cv2.resize(cells, (TILE_PX, TILE_PX), interpolation=cv2.INTER_NEAREST)[..., None]
    mixed: Picture = (tile * (0.25 + 0.75 * shade)).astype(np.uint8)
    for edge in np.linspace(0, TILE_PX, len(cells) + 1).round().astype(int)[1:-1].tolist():
        mixed[edge, :] = mixed[edge, :] // 2 + 60
        mixed[:, edge] = mixed[:, edge] // 2 + 60
    return mixed
