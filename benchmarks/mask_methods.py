"""What the mask benchmark compares: this project's methods, and peers on plain OpenCV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from harl_fast.errors import HarlError
from preprocess.images.arrays import Map, Mask, Pixels
from preprocess.masks.heuristic.binary import centre_prior, otsu_level
from preprocess.masks.registry import method_facts, open_method, parse_spec, to_mask

GRABCUT_PX, GRABCUT_ROUNDS, GRABCUT_BOX = 160, 3, 0.88
"""Longest side at which GrabCut works, its rounds, and its box' share of both sides."""
PRIOR_PX, PRIOR_SIGMA = 64, 0.3
"""Side of the centre prior and its standard deviation in image sides."""


class Found(NamedTuple):
    """One picture's mask (S, S) bool, the soft map behind it, and if the stand-in served."""

    mask: Mask
    soft: Map
    stand_in: bool


@dataclass(frozen=True)
class Contender:
    """One way to make masks."""

    name: str
    find: Callable[[Sequence[Pixels]], list[Found]]
    """Pictures (H, W, 3) uint8 RGB of any sizes to their masks."""
    facts: dict[str, Any]
    """What it is, for the report: kind (ours or peer), supervision, parameters."""


def ours(name: str, spec: str) -> Contender:
    """Return one of this project's methods under a name."""
    method = parse_spec(spec)
    maps = open_method(method)

    def find(images: Sequence[Pixels]) -> list[Found]:
        found = []
        for soft in maps(images):
            mask, stand_in = to_mask(method, soft)
            found.append(Found(mask, soft, stand_in))
        return found

    return Contender(name, find, {"kind": "ours", "spec": spec, **method_facts(method)})


def grabcut(rgb: Pixels) -> Found:
    """Return GrabCut's mask from a central box (Rother et al., SIGGRAPH 2004; OpenCV)."""
    scale = min(1.0, GRABCUT_PX / max(rgb.shape[:2]))
    height, width = (max(8, round(n * scale)) for n in rgb.shape[:2])
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    margin = (1 - GRABCUT_BOX) / 2
    box = (round(margin * width), round(margin * height),
           round(GRABCUT_BOX * width), round(GRABCUT_BOX * height))  # fmt: skip
    labels = np.zeros((height, width), np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # its first colour models come from k-means
    cv2.grabCut(small, labels, box, *models, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_RECT)
    mask: Mask = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return Found(mask, mask.astype(np.float32), False)


def centre_otsu(_: Pixels) -> Found:
    """Return a Gaussian about the centre, cut at its Otsu level; the picture plays no part."""
    soft = centre_prior(PRIOR_PX, sigma=PRIOR_SIGMA)
    soft = (soft - soft.min()) / (soft.max() - soft.min())
    return Found(soft > otsu_level(soft), soft, False)


def contenders(
    *, network: Path | None, onnx: Path | None, extra: Sequence[str]
) -> tuple[list[Contender], dict[str, str]]:
    """Return the methods that can run, in the order of the table, and why others cannot.

    network: of `selftrained`. onnx: a saliency network. extra: further method specs.
    """
    skipped: dict[str, str] = {}
    wanted = {"heuristic": "heuristic"}
    for name, file, variable in (("selftrained", network, "NETWORK"), ("onnx", onnx, "ONNX")):
        if file is None:
            skipped[name] = f"no {variable}=<file> was given"
        else:
            wanted[name] = f"{name}:{file}"
    wanted |= {spec: spec for spec in extra} | {"center": "center", "full": "full"}
    made = []
    for name, spec in wanted.items():
        try:
            made.append(ours(name, spec))
        except HarlError as error:
            skipped[name] = str(error)
    peer: dict[str, Any] = {"kind": "peer", "supervision": "none"}
    size = {"longest_px": GRABCUT_PX, "rounds": GRABCUT_ROUNDS, "box": GRABCUT_BOX}
    made.append(Contender("grabcut", _each(grabcut), peer | {"parameters": size}))
    size = {"px": PRIOR_PX, "sigma": PRIOR_SIGMA}
    made.append(Contender("center+otsu", _each(centre_otsu), peer | {"parameters": size}))
    return made, skipped


def _each(find: Callable[[Pixels], Found]) -> Callable[[Sequence[Pixels]], list[Found]]:
    return lambda images: [find(rgb) for rgb in images]
