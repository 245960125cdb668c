"""What frozen features know of the demo set: the object, the scene, the object in unseen scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harl_fast.data.container.manifest import find_container, read_manifest
from harl_fast.demoset import SPLITS, check_kind, scenes_of
from harl_fast.engine.lineval import half, preprocessing
from harl_fast.engine.networks import Pretrained
from harl_fast.eval.features import FeatureSet
from harl_fast.eval.knn import HEADLINE, knn
from harl_fast.eval.logistic import logistic_probe
from harl_fast.eval.metrics import Predictions, Score, scores
from harl_fast.eval.protocol import Evaluator

OBJECT, SCENE, UNSEEN = "object", "scene", "object in unseen scenes"
"""What is read out. The first and the last differ in the images that heads and bank come from."""
HELD_BACK = 2
"""Scenes that `UNSEEN` keeps from the heads at a time."""


@dataclass(frozen=True)
class SplitFeatures:
    """The features of one split under both labels, on the CPU."""

    objects: FeatureSet
    """With the objects as labels."""
    scenes: FeatureSet
    """The same features with the scenes."""

    def within(self, scenes: Tensor, *, inside: bool) -> FeatureSet:
        """Return the samples of some scenes, or of all others, with the objects as labels."""
        chosen = torch.isin(self.scenes.labels, scenes, invert=not inside)
        return FeatureSet(self.objects.features[chosen], self.objects.labels[chosen])


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent by each method, with the interval for the choice of validation images."""

    linear: Score
    """Logistic regression, see `logistic_probe`."""
    knn: Score
    """Of `HEADLINE` neighbours, or of all training samples if those are fewer."""


def extract_splits(
    encoder: Pretrained, data: Path, *, label: str
) -> tuple[SplitFeatures, SplitFeatures]:
    """Return what an encoder makes of both splits of a demo set, each image seen once.

    data: folder of the containers. label: name on the progress lines. Raises DataError if they are
    no demo set's.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seen = preprocessing(encoder, crop=None)
    check_kind(data, read_manifest(find_container(data, "train")).source)
    evaluator = Evaluator(
        data,
        **{name: seen[name] for name in ("size_px", "mean", "std", "crop")},
        device=device,
    )
    named = {split: scenes_of(evaluator.names(split)) for split in SPLITS}
    kinds = sorted({scene for each in named.values() for scene in each})
    backbone, found = encoder.backbone.to(device), list[SplitFeatures]()
    for split, each in named.items():
        objects = evaluator.features(backbone, split, autocast=half(), label=label, weights=None)
        numbers = torch.tensor([kinds.index(scene) for scene in each])
        found.append(SplitFeatures(objects, FeatureSet(objects.features, numbers)))
    return found[0], found[1]


def judge(train: SplitFeatures, val: SplitFeatures, *, seed: int = 0) -> dict[str, Accuracy]:
    """Return the accuracies of heads and k-NN on the validation samples, by what is read out.

    For `UNSEEN` the scenes are taken two at a time: heads and bank come from the training samples
    of all others, and are judged on the validation samples of those two, so that each is judged
    once. Masks play no part. seed: of the held-out rows that choose C, and of the intervals.
    """
    objects, scenes = (int(each.labels.max()) + 1 for each in (train.objects, train.scenes))
    unseen = [
        (train.within(pair, inside=False), val.within(pair, inside=True))
        for pair in torch.arange(scenes).split(HELD_BACK)
    ]
    return {
        OBJECT: _accuracy([(train.objects, val.objects)], classes=objects, seed=seed),
        SCENE: _accuracy([(train.scenes, val.scenes)], classes=scenes, seed=seed),
        UNSEEN: _accuracy(unseen, classes=objects, seed=seed),
    }


def chance(features: SplitFeatures) -> dict[str, float]:
    """Return what guessing reaches of each thing read out, in percent; classes are balanced."""
    objects, scenes = (len(each.labels.unique()) for each in (features.objects, features.scenes))
    return {OBJECT: 100 / objects, SCENE: 100 / scenes, UNSEEN: 100 / objects}


def _accuracy(
    folds: Sequence[tuple[FeatureSet, FeatureSet]], *, classes: int, seed: int
) -> Accuracy:
    linear, near = list[Predictions](), list[Predictions]()
    for train, test in folds:
        k = min(HEADLINE, len(train.labels))
        linear.append(logistic_probe(train, test, classes=classes, seed=seed).predictions)
        near.append(knn(train, test, classes=classes, ks=(k,))[k])
    top1 = [
        scores(Predictions.joined(parts), classes=classes, seed=seed)["top1"]
        for parts in (linear, near)
    ]
    return Accuracy(*top1)
