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

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from harl_fast import drawing
from harl_fast.config import RunConfig, ViewConfig
from harl_fast.data.container.fields import pack_mask
from harl_fast.data.loader import BetonLoader
from harl_fast.data.occupancy import Occupancy, histogram
from harl_fast.data.reader import StoredSample, read_samples
from harl_fast.data.views.cells import fill_integral
from harl_fast.data.views.color_device import Photometric
from harl_fast.data.views.crop import ViewGeometry, draw_view, geometry_table
from harl_fast.drawing import Picture
from harl_fast.engine.views import view_geometry, views_at
from harl_fast.files import write_bytes
from harl_fast.host import utc_time
from harl_fast.provenance import code_version
from harl_fast.rng import GEOMETRY, stream

_PANEL_PX, _EDGE_PX = 260, 24
_BOXES = (
    *((0, 170, 255), (255, 60, 160), (60, 200, 60), (255, 150, 40)),
    *((150, 90, 255), (0, 210, 190), (160, 110, 60), (130, 130, 130)),
)
"""Colours of the views' boxes, in turn."""
_DIMMED, _LINES = (40, 16, 60), (140, 140, 140)
"""What cells without foreground fade to, and the lines between cells."""
_BAR = (0, 120, 190)
_GROUNDS = (176, 196, 222), (222, 184, 135)
"""Of the mark for replaced backgrounds."""


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

    One row per sample: the original with its mask's outline and all boxes (a filled corner shows
    where the view's top left comes from, so a flip is visible); then each view in the colours the
    network receives, and the same view with its cells: the brighter, the more foreground.
    Raises DataError when the container or a sample is damaged or has no such id.
    """
    views = view_geometry(config, epoch=epoch)
    channels = config.model.in_channels
    loader = BetonLoader(
        beton, views=views, batch_global=1, batch_micro=1, seed=config.seed, channels=channels
    )
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
            tiles = {
                "stored image with mask and boxes": _original(sample, views, config.seed, epoch)
            }
            for view, (pixels, geometry) in enumerate(zip(batch.views, views, strict=True)):
                coloured = colour(pixels, view=view, ids=[sample.id], epoch=epoch)
                seen = drawing.fitted(_shown(coloured, colour)[0])
                cells = batch.cells[view][0].numpy()
                name, size = f"view {view + 1}", geometry.size_px
                tiles[f"{name} as the network receives it, {size} x {size} px"] = seen
                tiles[f"mask cells of {name}, {len(cells)} x {len(cells)}"] = _celled(seen, cells)
            classes = loader.manifest.classes
            label = f"{classes[sample.label]}   " if classes else ""
            rows.append((f"sample {sample.id}   {label}{sample.name}", tiles))
    finally:
        loader.close()
    title = f"What the network receives from {beton}, epoch {epoch}"
    write_png(out, drawing.sheet(rows, title=title, legend=_legend(config.data.views)), about=about)


def occupancy_chart(found: Occupancy, out: Path, *, about: Mapping[str, Any]) -> None:
    """Write a PNG: how many masks cover how much, and each view's mean foreground share by cell.

    about: as for `write_png`.
    """
    count, counts = len(found.coverage), histogram(found.coverage)
    head = f"masks by the share of the image that they cover, highest bar {counts.max():,}"
    panels = {head: _bars(counts)}
    for view, grid in enumerate(found.cells, start=1):
        head = f"view {view}: foreground share by cell, mean {grid.mean():.0%}"
        panels[head] = _heat(grid)
    title = f"Masks of {count:,} samples and of their crops"
    write_png(out, drawing.sheet([("", panels)], title=title), about=about)


def write_png(out: Path, picture: Picture, *, about: Mapping[str, Any]) -> None:
    """Write (H, W, 3) uint8 RGB pixels as a PNG, in one atomic step.

    about: what the picture was made from; kept as JSON in its "Description", with code and time.
    """
    text = PngInfo()
    text.add_itxt("Description", json.dumps({**about, "code": code_version(), "time": utc_time()}))
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", pnginfo=text, compress_level=1)
    write_bytes(out, stream.getvalue())


def _bars(counts: npt.NDArray[np.int64]) -> Picture:
    """Draw a histogram by tenths of [0, 1]."""
    panel = Image.new("RGB", (_PANEL_PX, _PANEL_PX + _EDGE_PX), drawing.PAPER)
    draw, width = ImageDraw.Draw(panel), _PANEL_PX // len(counts)
    for place, count in enumerate(counts.tolist()):
        left, top = place * width, _PANEL_PX - round(_PANEL_PX * count / max(counts.max(), 1))
        if count:
            draw.rectangle((left + 2, top, left + width - 3, _PANEL_PX - 1), fill=_BAR)
    draw.line((0, _PANEL_PX, _PANEL_PX, _PANEL_PX), fill=drawing.INK)
    for place in range(0, len(counts) + 1, 2):
        at, anchor = (place * width, _PANEL_PX + 5), "lmr"[(place > 0) + (place == len(counts))]
        draw.text(at, f"{place * 10}%", drawing.INK, anchor=f"{anchor}a")
    return np.array(panel)


def _heat(grid: npt.NDArray[np.float64]) -> Picture:
    """Draw a grid of shares, black for 0 and white for 1, with their numbers if they fit."""
    panel = Image.new("RGB", (_PANEL_PX, _PANEL_PX + _EDGE_PX), drawing.PAPER)
    draw, side = ImageDraw.Draw(panel), _PANEL_PX / len(grid)
    for (row, column), share in np.ndenumerate(grid):
        left, top = round(column * side), round(row * side)
        end = (round((column + 1) * side) - 2, round((row + 1) * side) - 2)
        draw.rectangle((left, top, *end), fill=(round(255 * share),) * 3)
        if len(grid) <= 8:
            ink = drawing.OUTLINE if share < 0.6 else (120, 0, 0)
            draw.text((left + side / 2, top + side / 2), f"{share:.0%}", ink, anchor="mm")
    return np.array(panel)


def _shown(normalised: torch.Tensor, colour: Photometric) -> Picture:
    """Undo the normalisation: (B, C, S, S) float32 to (B, S, S, 3) uint8."""
    pixels = normalised * colour.std[:, None, None] + colour.mean[:, None, None]
    pixels = pixels.expand(-1, 3, -1, -1)
    return (pixels.permute(0, 2, 3, 1) * 255.0).round().clamp(0, 255).to(torch.uint8).numpy()


def _original(sample: StoredSample, views: list[ViewGeometry], seed: int, epoch: int) -> Picture:
    picture = drawing.fitted(sample.image)
    height, width = sample.image.shape[:2]
    scale = max(picture.shape) / max(height, width)
    drawing.outline(picture, drawing.resized(sample.mask, *picture.shape[:2]), drawing.OUTLINE)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    integral = np.empty((len(sample.mask) + 1, len(sample.mask) + 1), np.int32)
    fill_integral(pack_mask(sample.mask), len(sample.mask), integral)
    for view, row in enumerate(geometry_table(views)):
        key = np.uint64(stream(seed, epoch, sample.id, view, GEOMETRY))
        top, left, box_h, box_w, flip, vflip = draw_view(key, height, width, row, integral)
        corners = np.array([left, top, left + box_w, top + box_h]) * scale
        x0, y0, x1, y1 = corners.round().astype(int).tolist()
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)  # of a thin picture less than a pixel may be left
        colour = _BOXES[view % len(_BOXES)]
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=2)
        mark, mark_y = x1 - 8 if flip else x0, y1 - 8 if vflip else y0
        draw.rectangle((mark, mark_y, mark + 7, mark_y + 7), fill=colour)
    return drawing.tile(np.array(image))


def _celled(picture: Picture, cells: npt.NDArray[np.float32]) -> Picture:
    """Fade what the cells leave out, and draw the lines between them."""
    shade = drawing.resized(cells, *picture.shape[:2])[..., None]
    weight = 0.2 + 0.8 * shade
    mixed: Picture = (picture * weight + np.array(_DIMMED, np.float32) * (1 - weight)).astype(
        np.uint8
    )
    for axis, lines in enumerate(cells.shape):
        edges = np.linspace(0, picture.shape[axis], lines + 1).round().astype(int)[1:-1]
        mixed[(slice(None),) * axis + (edges,)] = _LINES
    return mixed


def _legend(views: Sequence[ViewConfig]) -> drawing.Legend:
    corner = np.full((14, 26, 3), drawing.PAPER, np.uint8)
    corner[3:], corner[5:, 2:], corner[3:11, :8] = _BOXES[0], drawing.PAPER, _BOXES[0]
    ramp = _celled(
        np.full((14, 26, 3), 255, np.uint8), np.linspace(0, 1, 3, dtype=np.float32)[None]
    )
    return [
        (drawing.OUTLINE, "outline of the mask"),
        *((_BOXES[view], f"box of view {view + 1}") for view in range(len(views))),
        (corner, "filled corner: the view's top left (at the right: flipped)"),
        (ramp, "mask cells: background dimmed, foreground bright"),
        *_replaced(views),
        drawing.NO_IMAGE,
    ]


def _replaced(views: Sequence[ViewConfig]) -> drawing.Legend:
    """Say how often the background is another sample's, if ever."""
    shares = sorted({view.background_p for view in views})
    if not any(shares):
        return []
    mark = np.full((14, 26, 3), _GROUNDS[0], np.uint8)
    mark[:, 13:], mark[4:-4, 4:9], mark[4:-4, 17:22] = _GROUNDS[1], drawing.INK, drawing.INK
    share = " to ".join(f"{each:.0%}" for each in dict.fromkeys((shares[0], shares[-1])))
    return [(mark, f"foreground on another sample's background in {share} of the views")]
