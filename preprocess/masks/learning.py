"""The training loop of the mask network: losses, averaged weights, rounds of self-training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from harl_fast.files import Progress
from preprocess.masks.composites import Batches, Teaching, Variety
from preprocess.masks.network import BATCH, Architecture, MaskNet, cues_of, predict

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result beside the images; recorded in the weight file."""

    architecture: Architecture = field(default_factory=Architecture)
    variety: Variety = field(default_factory=Variety)
    steps: tuple[int, ...] = (1500, 1000, 1500)
    """Optimizer steps of each round; after each but the last the targets are made anew."""
    batch: int = 32
    lr_peak: float = 2e-3
    weight_decay: float = 0.02
    average: float = 0.995
    """Share of the averaged weights kept at each step; they are the ones that count."""
    seed: int = 0
    bfloat16: bool = True


def train(
    teaching: Teaching,
    recipe: Recipe,
    *,
    refresh: Callable[[MaskNet, Teaching, int], Teaching],
    progress: Progress,
) -> MaskNet:
    """Return a network trained on ``teaching``; ``refresh`` makes new targets between rounds."""
    torch.manual_seed(recipe.seed)
    draw = np.random.default_rng(recipe.seed)
    net = MaskNet(recipe.architecture).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = copy.deepcopy(net).eval()
    for number, steps in enumerate(recipe.steps):
        if number:
            teaching = refresh(mean, teaching, number)
            net.load_state_dict(mean.state_dict())
        _round(net, mean, Batches(teaching, recipe.variety), recipe, steps, draw, progress)
    return mean


def _round(
    net: MaskNet,
    mean: MaskNet,
    batches: Batches,
    recipe: Recipe,
    steps: int,
    draw: np.random.Generator,
    progress: Progress,
) -> None:
    optimizer = torch.optim.AdamW(
        net.parameters(), recipe.lr_peak, weight_decay=recipe.weight_decay
    )
    net.train()
    order = _orders(batches.usable, recipe.batch, draw)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_peak * _schedule(step / steps)
        images, target, weight = batches.draw(next(order), draw)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            logits = net(pixels, cues_of(images))
        loss = mask_loss(logits[:, 0].float(), torch.from_numpy(target), torch.from_numpy(weight))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        # The first averages follow closely, or they would remember the random start.
        follow(mean, net, keep=min(recipe.average, step / (step + 10)))
        progress.advance(len(pixels))


def _orders(
    usable: npt.NDArray[np.int64], batch: int, draw: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield index batches for ever; every image once before any comes again."""
    left = np.empty(0, np.int64)
    while True:
        while len(left) < batch:
            left = np.concatenate([left, draw.permutation(usable)])
        yield left[:batch]
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


def all_maps(net: MaskNet, images: npt.NDArray[np.uint8], *, bfloat16: bool) -> Maps:
    """Return the (N, S/2, S/2) maps of (N, S, S, 3) images, each the mean with its mirror's."""
    folded = copy.deepcopy(net).fold().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    maps = []
    for start in range(0, len(images), BATCH):
        squares = torch.from_numpy(images[start : start + BATCH])
        plain = predict(folded, squares, bfloat16=bfloat16)
        mirrored = predict(folded, squares.flip(2), bfloat16=bfloat16).flip(2)
        maps.append(((plain + mirrored) / 2).numpy())
    return np.concatenate(maps)
