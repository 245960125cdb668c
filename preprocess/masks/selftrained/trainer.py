"""The training loop of the mask network: losses, averaged weights, rounds of self-training."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from harl_fast.files import Progress
from harl_fast.pool import ordered_map
from preprocess.images.arrays import Map, Pixels
from preprocess.masks.selftrained.composites import Augmenter, TrainingSet, Variety
from preprocess.masks.selftrained.network import (
    Architecture,
    MaskNet,
    cues_array,
    native_bfloat16,
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result beside the images; recorded in the weight file."""

    architecture: Architecture = field(default_factory=Architecture)
    variety: Variety = field(default_factory=Variety)
    steps: tuple[int, ...] = (1200, 1200)
    """Optimizer steps of each round; after each but the last the targets are made anew."""
    batch: int = 16
    lr_peak: float = 3e-3
    lr_again: float = 1.5e-3
    """Peak of the rounds after the first, which start from good weights."""
    weight_decay: float = 0.02
    average: float = 0.995
    """Share of the averaged weights kept at each step; they are the ones that count."""
    seed: int = 0
    bfloat16: bool = field(default_factory=native_bfloat16)


class Batch(NamedTuple):
    """One optimizer step's batch: pixels (B, S, S, 3), the rest (B, ..., S/2, S/2) float32."""

    pixels: Pixels
    cues: Map
    target: Map
    weight: Map


@dataclass(frozen=True)
class BatchSpec:
    """What is to be drawn for a step; the same batch whichever process draws it."""

    indices: npt.NDArray[np.int64]
    seed: tuple[int, ...]


@dataclass(frozen=True)
class BatchSampler:
    """Draws batches, in this process or in others."""

    augmenter: Augmenter

    def __call__(self, spec: BatchSpec) -> Batch:
        cv2.setNumThreads(1)
        drawn = self.augmenter.draw(spec.indices, np.random.default_rng(spec.seed))
        cues = cues_array(drawn.pixels, drawn.opinions)
        return Batch(drawn.pixels, cues, drawn.target, drawn.weight)


def train(
    training_set: TrainingSet,
    recipe: Recipe,
    *,
    refresh: Callable[[MaskNet, TrainingSet], TrainingSet],
    progress: Progress,
    workers: int = 0,
) -> MaskNet:
    """Return a network trained on ``training_set``; ``refresh`` makes new targets between rounds.

    workers: processes that draw the batches; 0 draws them in this one. The result is the same.
    """
    torch.manual_seed(recipe.seed)
    net = MaskNet(recipe.architecture).to(memory_format=torch.channels_last)
    mean = copy.deepcopy(net).eval()
    for number, steps in enumerate(recipe.steps):
        if number:
            training_set = refresh(mean, training_set)
            net.load_state_dict(mean.state_dict())
        augmenter = Augmenter(training_set, recipe.variety)
        specs = _batch_specs(augmenter.usable, recipe.batch, steps, (recipe.seed, number))
        with contextlib.closing(_batches(BatchSampler(augmenter), specs, workers)) as batches:
            peak = recipe.lr_again if number else recipe.lr_peak
            _round(net, mean, batches, recipe, steps=steps, peak=peak, progress=progress)
    return mean


def _batches(
    sampler: BatchSampler, specs: Iterator[BatchSpec], workers: int
) -> Generator[Batch, None, None]:
    if workers == 0:
        yield from map(sampler, specs)
        return
    results = ordered_map(sampler, specs, workers=workers, describe=lambda _: "a training batch")
    with contextlib.closing(results):
        yield from results


def _round(
    net: MaskNet,
    mean: MaskNet,
    batches: Iterable[Batch],
    recipe: Recipe,
    *,
    steps: int,
    peak: float,
    progress: Progress,
) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), peak, weight_decay=recipe.weight_decay)
    net.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = peak * _schedule(step / steps)
        pixels = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float()
        cues = torch.from_numpy(batch.cues).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            logits = net(pixels, cues)
        target, weight = torch.from_numpy(batch.target), torch.from_numpy(batch.weight)
        loss = mask_loss(logits[:, 0].float(), target, weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        # The first averages follow closely, or they would remember the random start.
        follow(mean, net, keep=min(recipe.average, step / (step + 10)))
        progress.advance(len(pixels))


def _batch_specs(
    usable: npt.NDArray[np.int64], batch: int, steps: int, seed: tuple[int, ...]
) -> Iterator[BatchSpec]:
    """Yield the specs of a round; every image comes once before any comes again."""
    draw = np.random.default_rng(seed)
    left = np.empty(0, np.int64)
    for step in range(steps):
        while len(left) < batch:
            left = np.concatenate([left, draw.permutation(usable)])
        yield BatchSpec(left[:batch], (*seed, step))
        left = left[batch:]


def _schedule(done: float) -> float:
    """Return the share of the peak rate: a rise over the first 4 %, then a half cosine to 2 %."""
    return min(1.0, done / 0.04 + 0.05) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


def mask_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return cross entropy plus soft IoU loss, both weighted.

    All (B, h, w); target and weight in [0, 1].
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = (entropy * weight).sum() / weight.sum().clamp_min(1e-6)
    found = torch.sigmoid(logits)
    both = (weight * found * target).sum((1, 2))
    either = (weight * (found + target - found * target)).sum((1, 2))
    trust = weight.mean((1, 2))
    overlap = ((1 - (both + 1) / (either + 1)) * trust).sum() / trust.sum().clamp_min(1e-6)
    return entropy + overlap


@torch.no_grad()
def follow(mean: nn.Module, net: nn.Module, *, keep: float) -> None:
    """Move the averaged weights, and the normalisation's statistics, towards the network's."""
    own, new = mean.state_dict(), net.state_dict()
    names = [name for name, value in own.items() if value.is_floating_point()]
    torch._foreach_lerp_([own[n] for n in names], [new[n] for n in names], 1 - keep)
