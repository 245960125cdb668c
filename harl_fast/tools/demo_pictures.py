"""Pictures of what encoders know of the demo set: bars of accuracies, and nearest neighbours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from harl_fast import drawing
from harl_fast.data.container.manifest import find_container, read_manifest
from harl_fast.data.reader import read_samples
from harl_fast.demoset import SPLITS, scenes_of
from harl_fast.drawing import Picture
from harl_fast.eval.knn import nearest
from harl_fast.rng import permutation
from harl_fast.tools import charts
from harl_fast.tools.demo_scores import OBJECT, SCENE, UNSEEN, Accuracy, SplitFeatures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from harl_fast.eval.metrics import Score

QUERIES, NEAREST = 6, 4
PICTURE_PX, _FRAME_PX = 96, 5
_CELL_PX = PICTURE_PX + 2 * _FRAME_PX
_FRAMES: dict[tuple[bool, bool], tuple[drawing.Colour, str]] = {
    (True, True): ((0, 158, 115), "same object and scene"),
    (True, False): ((0, 114, 178), "same object, other scene"),
    (False, True): ((213, 94, 0), "other object, same scene"),
    (False, False): ((190, 190, 190), "neither"),
}
"""Frames of neighbours, by whether they share the query's object and scene."""
_COLOURS = (charts.GREY, charts.ORANGE, charts.BLUE, charts.GREEN)
_FAINT = 0.45
"""Opacity of k-NN's bars."""
_HEADS = {OBJECT: "object", SCENE: "scene (background)", UNSEEN: "object, in unseen scenes"}


def bars(
    found: Mapping[str, Mapping[str, Accuracy]], *, chance: Mapping[str, float], title: str
) -> bytes:
    """Return a PNG file: a panel for each thing read out, two bars with intervals for each encoder.

    found: by encoder and thing read out. chance: of each, in percent.
    """
    with charts.style():
        figure, panels = charts.panels(11.5, 4.6, columns=len(_HEADS))
        for axes, (what, head) in zip(panels, _HEADS.items(), strict=True):
            for place, (encoder, colour) in enumerate(zip(found, _COLOURS, strict=False)):
                accuracy = found[encoder][what]
                _bar(axes, place - 0.2, accuracy.linear, colour, 1.0)
                _bar(axes, place + 0.2, accuracy.knn, colour, _FAINT)
            axes.axhline(chance[what], color="#222222", linewidth=1, linestyle=":")
            axes.set_xticks(range(len(found)), [name.replace(" ", "\n", 1) for name in found])
            axes.set_xlim(-0.6, len(found) - 0.4)
            axes.set_ylim(0, 108)
            axes.set_yticks(range(0, 101, 20))
            axes.set_title(head)
            axes.grid(axis="y", color="#e5e5e5")
            axes.set_axisbelow(True)
        panels[0].set_ylabel("top-1 accuracy (%)")
        note = "left bar: linear head; right, pale bar: k-NN; lines: 95 % intervals; dotted: chance"
        figure.suptitle(title, fontsize=13)
        figure.supxlabel(note, fontsize=9, color="#444444")
        return charts.png(figure)


def _bar(axes: Axes, place: float, score: Score, colour: str, opacity: float) -> None:
    axes.bar(place, score.value, width=0.36, color=colour, alpha=opacity)
    axes.plot((place, place), (score.low, score.high), color="#222222", linewidth=1)
    axes.annotate(
        f"{score.value:.0f}",
        (place, score.high),
        (0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9,
    )


def neighbours(
    found: Mapping[str, tuple[SplitFeatures, SplitFeatures]],
    data: Path,
    *,
    title: str,
    seed: int = 0,
) -> bytes:
    """Return a PNG file: validation images, each with the training images nearest to it by encoder.

    found: the features of both splits by encoder. data: folder of the containers. The `QUERIES`
    are drawn by ``seed``, no two of one object or scene. Near is by cosine, as for k-NN. Raises
    DataError for a sample that does not decode.
    """
    splits = {split: find_container(data, split) for split in SPLITS}
    classes = read_manifest(splits["train"]).classes
    queries = _queries(next(iter(found.values()))[1], seed=seed)
    rows = []
    for query, sample in zip(queries, read_samples(splits["val"], queries), strict=True):
        tiles = {"query": drawing.resized(sample.image, 2 * _CELL_PX, 2 * _CELL_PX)}
        alike = []
        for name, (train, val) in found.items():
            query_features = val.objects.features[query : query + 1]
            ids = nearest(train.objects.features, query_features, k=NEAREST)[1][0]
            same = [
                own.labels[ids] == other.labels[query]
                for own, other in ((train.objects, val.objects), (train.scenes, val.scenes))
            ]
            pictures = [each.image for each in read_samples(splits["train"], ids.tolist())]
            tiles[f"nearest: {name}"] = _mosaic(pictures, torch.stack(same, 1).tolist())
            alike.append(f"{name} {int(same[0].sum())}")
        kind, scene = classes[sample.label], scenes_of([sample.name])[0]
        caption = f"{kind} in {scene}; of {NEAREST} nearest, the same object: {', '.join(alike)}"
        rows.append((caption, tiles))
    stream = io.BytesIO()
    sheet = drawing.sheet(rows, title=title, legend=[*_FRAMES.values()])
    Image.fromarray(sheet).save(stream, "PNG")
    return stream.getvalue()


def _queries(val: SplitFeatures, *, seed: int) -> list[int]:
    """Return sample ids of as many objects and scenes, fewer where there are not so many."""
    chosen: list[int] = []
    for index in permutation(seed, 0, len(val.objects.labels)).tolist():
        taken = [each.labels[chosen] for each in (val.objects, val.scenes)]
        own = [each.labels[index] for each in (val.objects, val.scenes)]
        if not any((each == label).any() for each, label in zip(taken, own, strict=True)):
            chosen.append(index)
        if len(chosen) == QUERIES:
            break
    return chosen


def _mosaic(pictures: Sequence[Picture], alike: Sequence[Sequence[bool]]) -> Picture:
    """Return four pictures, nearest first, in two rows, each framed by what it shares."""
    framed = []
    for picture, (same_object, same_scene) in zip(pictures, alike, strict=True):
        tile = np.empty((_CELL_PX, _CELL_PX, 3), np.uint8)
        tile[:] = _FRAMES[same_object, same_scene][0]
        inside = slice(_FRAME_PX, -_FRAME_PX)
        tile[inside, inside] = drawing.resized(picture, PICTURE_PX, PICTURE_PX)
        framed.append(tile)
    return np.concatenate([np.concatenate(framed[:2], 1), np.concatenate(framed[2:], 1)])
