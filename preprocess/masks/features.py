"""Masks from a trained encoder's own features: clusters that own the image's border are background.

The second round of self-supervised masks: an encoder that was pretrained, with or without masks,
shows what belongs together in an image, and the border shows which of it is background. Images are
clustered one by one, by cosine k-means of the cells of a feature map; no random number is drawn.
"""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from harl_fast.engine.networks import Pretrained, load_pretrained
from harl_fast.errors import ConfigError, DataError
from harl_fast.lock import FOLDER_LOCK, holder
from harl_fast.model.backbone import LAST_LEVEL
from harl_fast.runfiles import home
from preprocess.images.arrays import Map, Pixels
from preprocess.masks.heuristic.binary import centre_prior, resized
from preprocess.masks.heuristic.method import FINE, SIDE, outlined
from preprocess.masks.selftrained.network import BATCH, one_thread, square

ROUNDS = 10
"""Most rounds of k-means; most images have settled before."""
PRIOR_SIGMA = 0.2
"""Standard deviation of the centre prior in image sides: narrower than `heuristic`'s, whose cues
are finer than cells."""


def open_features(
    run: str, *, level: int, size: int, clusters: Sequence[int]
) -> Callable[[Sequence[Pixels]], list[Map]]:
    """Return what maps images of any sizes by the features of a run, on one thread.

    run: anything that ``--ckpt`` takes. level: the stage whose map is clustered. size: side of the
    square that images are resized to, in pixels. clusters: per image, see `belief`. Each map is
    (128, 128) float32 in [0, 1]; where nothing stands out from the border it is zero, so that the
    centre ellipse stands in. Raises `HarlError` for a run that does not open.
    """
    encoder = opened(run)
    _check_level(encoder, run=run, level=level)

    def maps(images: Sequence[Pixels]) -> list[Map]:
        found: list[Map] = []
        with one_thread():
            for start in range(0, len(images), BATCH):
                some = images[start : start + BATCH]
                squares = np.stack([square(rgb, size) for rgb in some])
                cells = cell_features(encoder, squares, level=level)
                beliefs = [belief(each, clusters=clusters) for each in cells]
                found += map(outlined_belief, some, beliefs)
        return found

    return maps


def cell_features(encoder: Pretrained, squares: Pixels, *, level: int) -> Map:
    """Return the (B, h, h, D) float32 features, by level, of (B, S, S, 3) uint8 RGB pixels."""
    if encoder.backbone.in_channels == 1:
        squares = np.stack([cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in squares])[..., None]
    mean, std = (np.array(each, np.float32) * 255 for each in (encoder.mean, encoder.std))
    images = torch.from_numpy((squares - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        if level == LAST_LEVEL:
            maps = encoder.backbone(images)
        else:
            maps, _ = encoder.backbone(images, level=level)
        cells: Map = maps.float().permute(0, 2, 3, 1).contiguous().numpy()
    return cells


def belief(cells: Map, *, clusters: Sequence[int]) -> Map:
    """Return how much an image's (h, h, D) cells look like foreground: (h, h) float32 in [0, 1].

    A cluster's density is the share of its cells that lie along the image's border, over that of
    all cells. From density 0, of foreground, to 1, of background, its belief falls from 1 to 0.
    The result is the mean over several numbers of clusters.
    """
    side = len(cells)
    ring = np.ones((side, side), np.float32)
    ring[1:-1, 1:-1] = 0
    ring /= ring.mean()
    total = np.zeros(side * side, np.float32)
    for count in clusters:
        owners = cosine_clusters(cells.reshape(side * side, -1), count)
        density = np.bincount(owners, ring.ravel()) / np.maximum(np.bincount(owners), 1)
        total += np.maximum(0, 1 - density)[owners]
    return np.asarray(total.reshape(side, side) / len(clusters), np.float32)


def cosine_clusters(vectors: Map, count: int) -> npt.NDArray[np.int64]:
    """Return which of ``count`` clusters each of (N, D) vectors belongs to: (N,) int64.

    Spherical k-means (Dhillon and Modha, Machine Learning 2001). The first centre is the vector
    most like all, each further one the vector least like the centres before it.
    """
    units = _unit(vectors)
    centres = units[[int((units @ units.sum(axis=0)).argmax())]]
    while len(centres) < count:
        likeness = (units @ centres.T).max(axis=1)
        centres = np.concatenate([centres, units[[int(likeness.argmin())]]])
    owners: npt.NDArray[np.int64] = (units @ centres.T).argmax(axis=1)
    for _ in range(ROUNDS):
        sums = np.eye(count, dtype=np.float32)[owners].T @ units
        # A cluster that has lost all its vectors keeps its centre.
        kept = np.bincount(owners, minlength=count)[:, None] == 0
        centres = np.where(kept, centres, _unit(sums))
        before, owners = owners, (units @ centres.T).argmax(axis=1)
        if (owners == before).all():
            break
    return owners


def _unit(vectors: Map) -> Map:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-6), np.float32)


def outlined_belief(rgb: Pixels, cells: Map) -> Map:
    """Return an (h, h) belief as a (128, 128) map whose outline follows the pixels' edges.

    It is weighted towards the centre first. One that is the same everywhere becomes zero.
    """
    if np.ptp(cells) < 1e-6:
        return np.zeros((FINE, FINE), np.float32)
    return outlined(rgb, resized(cells * centre_prior(len(cells), sigma=PRIOR_SIGMA), SIDE))


@functools.cache
def opened(run: str) -> Pretrained:
    """Return a run's encoder, read once per process; the main one alone prints the receipt.

    Raises `HarlError`, also for the folder of a run that goes on: its newest step would be one
    for some workers and another for others.
    """
    path = Path(run)
    owner = holder(home(path) / FOLDER_LOCK) if path.is_dir() else None
    if owner is not None:
        raise DataError(
            f"mask method features: {run} is being written by {owner}, so that its newest step "
            f"changes: wait until it ends, or give a step file of its checkpoints"
        )
    worker = multiprocessing.parent_process() is not None
    with contextlib.redirect_stderr(io.StringIO()) if worker else contextlib.nullcontext():
        return load_pretrained(run)


def _check_level(encoder: Pretrained, *, run: str, level: int) -> None:
    try:
        encoder.backbone.channels(level)
    except ConfigError as error:
        raise ConfigError(
            f"mask method features: {encoder.model.arch} of {run} gives out its last map alone: "
            f"write {{features: {{run: {run}, level: {LAST_LEVEL}}}}}"
        ) from error
