"""One pass of a frozen encoder over a set: its features and labels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

import torch
from torch import Tensor, nn

from harl_fast.errors import CheckpointError, DataError
from harl_fast.files import Progress
from harl_fast.model.pooling import global_mean

if TYPE_CHECKING:
    from harl_fast.data.loader import Batch


class SizedLoader(Protocol):
    """An iterable of batches, (B, S, S, C) uint8 views, that knows how many samples it yields."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class FeatureSet:
    """Features of one split, on the CPU."""

    features: Tensor
    """(N, D) float32."""
    labels: Tensor
    """(N,) int64."""


def extract(
    encoder: nn.Module,
    loader: SizedLoader,
    *,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
    autocast: torch.dtype | None = None,
    label: str = "features",
    stream: TextIO | None = None,
) -> FeatureSet:
    """Return the global mean of the encoder's last map for every sample, in the loader's order.

    encoder: (B, C, S, S) float to (B, D, h, w), already on ``device``; run in eval mode, and left
    in the mode it came in. prepare: (B, S, S, C) uint8 on ``device`` to (B, C, S, S) normalised.
    autocast: compute type of the encoder; None computes in its own. label: name on the progress
    line, which goes to ``stream`` (None: standard error). Raises DataError when the loader yields
    another number of samples than it announced, and CheckpointError when a feature is not finite.
    """
    total, done = len(loader), 0
    features, labels = torch.empty(0), torch.empty(total, dtype=torch.int64)
    with (
        _evaluating(encoder),
        torch.inference_mode(),
        Progress(total, label=label, stream=stream) as progress,
    ):
        for batch in loader:
            images = prepare(batch.views[0].to(device))
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                maps = encoder(images)
            rows = global_mean(maps)
            if done == 0:
                # One allocation: ImageNet's 10 GB would not fit twice, as a list and joined.
                features = torch.empty(total, rows.shape[1])
            end = done + rows.shape[0]
            if end > total:
                done = end
                break
            features[done:end], labels[done:end] = rows, batch.labels
            progress.advance(end - done)
            done = end
    if done != total or total == 0:
        raise DataError(
            f"{label}: {total} samples were announced, at least one is needed, and the loader "
            f"yielded {done}; write the container again with `make beton`"
        )
    bad = int((~torch.isfinite(features).all(1)).sum())
    if bad:
        raise CheckpointError(
            f"{label}: {bad} of {total} samples have features that are not finite. The encoder "
            f"diverged: take an earlier checkpoint, or lower optim.lr and train again."
        )
    return FeatureSet(features, labels)


@contextlib.contextmanager
def _evaluating(encoder: nn.Module) -> Iterator[None]:
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)
