"""Masks of small images: those of the picture at several times its size."""

from __future__ import annotations

import cv2
import numpy as np

from preprocess.masks.enlarged import enlarged_map
from preprocess.masks.heuristic.method import heuristic_map
from preprocess.masks.registry import method_facts, parse_spec


def disc(side: int) -> np.ndarray:
    """Return a red disc on green, without steps at its edge."""
    grid = (np.arange(side) + 0.5) / side - 0.5
    inside = np.clip((0.3 - np.hypot(grid, grid[:, None])) * side + 0.5, 0, 1)[..., None]
    colours = inside * (200, 40, 40) + (1 - inside) * (40, 160, 60)
    return colours.round().astype(np.uint8)


def overlap(soft: np.ndarray, truth: np.ndarray) -> float:
    mask = soft >= 0.5
    return float((mask & truth).sum() / (mask | truth).sum())


def test_it_is_the_heuristic_of_the_larger_picture() -> None:
    small = disc(32)
    large = cv2.resize(small, (128, 128), interpolation=cv2.INTER_CUBIC)
    assert (enlarged_map(small) == heuristic_map(large)).all()
    assert (enlarged_map(small, factor=2) != heuristic_map(large)).any()


def test_the_outline_of_a_small_disc_is_rounder_than_without() -> None:
    truth = disc(128)[..., 0] > 120
    found = overlap(enlarged_map(disc(32)), truth)
    assert found > overlap(heuristic_map(disc(32)), truth) and found > 0.95


def test_manifests_say_that_no_label_was_used() -> None:
    facts = method_facts(parse_spec("enlarged"))
    assert facts["supervision"] == "none" and facts["parameters"] == {"factor": 4}
