"""Pictures altered under a mask: what an encoder's head still knows of object and background.

Xiao, Engstrom, Ilyas and Madry, Noise or signal: the role of image backgrounds in object
recognition, ICLR 2021. All work on the views that the encoder sees, (N, S, S, C) uint8, and on how
much of each of their pixels the mask covers, (N, S, S) float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harl_fast.data.container.manifest import find_container
from harl_fast.data.loader import Batch, EvalLoader
from harl_fast.data.views.color_device import Photometric
from harl_fast.engine.lineval import half, preprocessing
from harl_fast.engine.networks import Pretrained
from harl_fast.eval.features import extract
from harl_fast.eval.metrics import from_logits
from harl_fast.eval.results import Head

Views = npt.NDArray[np.uint8]
Cover = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

FOREGROUND, BACKGROUND, SAME, OTHER, GAP = "fg", "bg", "same", "other", "gap"
"""The object alone; all but the object; it on the background of another picture of its class, and
of another class; the difference of these two."""
_NEAR_PX = 3
"""How far around a hole pixels say what fills it."""


def blanked(views: Views, cover: Cover, fill: Sequence[float]) -> Views:
    """Return views that show what is covered, and elsewhere a plain colour.

    fill: (C,) in [0, 255].
    """
    plain = np.broadcast_to(np.asarray(fill, np.float32), views.shape)
    return _mixed(views, plain, cover)


def pasted(views: Views, cover: Cover, behind: Labels) -> Views:
    """Return views whose covered part stands on another view's background.

    behind: (N,), which one's. What stands there is filled from around it first (Bertalmio, Bertozzi
    and Sapiro, CVPR 2001), so that no second object shows.
    """
    empty = np.stack(
        [
            cv2.inpaint(view, (part > 0).astype(np.uint8), _NEAR_PX, cv2.INPAINT_NS)
            for view, part in zip(views, cover, strict=True)
        ]
    ).reshape(views.shape)
    return _mixed(views, empty[behind], cover)


def partners(labels: Labels, *, same: bool, seed: int) -> Labels:
    """Return for each sample another one of its class, or one of another class, drawn evenly.

    labels: (N,). Returns (N,) rows; -1 where there is none.
    """
    draw, rows = np.random.default_rng(seed), np.arange(len(labels))
    found = np.full(len(labels), -1)
    for row, label in enumerate(labels):
        among = rows[((labels == label) == same) & (rows != row)]
        if len(among):
            found[row] = draw.choice(among)
    return found


def probe(encoder: Pretrained, head: Head, data: Path, *, classes: int) -> dict[str, float]:
    """Return the top-1 in percent of a head on altered validation views, and `GAP` in points.

    head: of the encoder's features of plain views. data: containers, by whose masks the views are
    altered. A class with one validation picture has no part in `SAME` and `OTHER`.
    """
    views, cover, labels = _masked_views(encoder, find_container(data, "val"))
    fill = [255 * value for value in encoder.mean]
    there = partners(labels, same=True, seed=0), partners(labels, same=False, seed=1)
    rows = np.flatnonzero((there[0] >= 0) & (there[1] >= 0))
    found = {
        FOREGROUND: _top1(encoder, head, blanked(views, cover, fill), labels, classes),
        BACKGROUND: _top1(encoder, head, blanked(views, 1 - cover, fill), labels, classes),
    }
    if len(rows):
        for name, behind in zip((SAME, OTHER), there, strict=True):
            made = pasted(views, cover, behind)[rows]
            found[name] = _top1(encoder, head, made, labels[rows], classes)
        found[GAP] = found[SAME] - found[OTHER]
    return found


def _mixed(front: Views, back: npt.NDArray[np.generic], cover: Cover) -> Views:
    share = cover[..., None]
    mixed = front.astype(np.float32) * share + back.astype(np.float32) * (1 - share)
    return np.rint(mixed).astype(np.uint8)


def _masked_views(encoder: Pretrained, container: Path) -> tuple[Views, Cover, Labels]:
    """Return all views that an evaluation shows of a container, their masks and their labels."""
    seen = preprocessing(encoder, crop=None)
    loader = EvalLoader(
        container,
        size_px=seen["size_px"],
        centre=seen["crop"],
        channels=len(encoder.mean),
        cells=seen["size_px"],
    )
    parts = [(b.views[0].clone(), b.cells[0].clone(), b.labels) for b in loader]
    loader.close()
    views, cover, labels = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    return views, cover, labels


@dataclass(frozen=True)
class _Pictures:
    """Views in memory as `extract` takes them."""

    views: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Batch]:
        for views, labels in zip(self.views.split(256), self.labels.split(256), strict=True):
            yield Batch((views,), (), labels, labels)


def _top1(encoder: Pretrained, head: Head, views: Views, labels: Labels, classes: int) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepare = Photometric((), mean=encoder.mean, std=encoder.std, seed=0).to(device).plain
    pictures = _Pictures(torch.from_numpy(views), torch.from_numpy(labels))
    backbone = encoder.backbone.to(device)
    found = extract(
        backbone, pictures, prepare=prepare, device=device, autocast=half(), label="altered views"
    )
    return from_logits(head(found.features), found.labels, classes=classes).top1
