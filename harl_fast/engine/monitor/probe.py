"""What the features are worth while they are being trained: k-NN and a ridge head on some images.

Nothing of the training moves: the online backbone is used in place, in eval mode and without
gradients, with running statistics averaged over ranks that are put back afterwards; nothing is
drawn at random. Rank 0 does it alone while the others wait, so it must end well within the
collectives' time limit: its cost is bounded by `log.probe_images`.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harl_fast.collectives import average_over_ranks
from harl_fast.config import RunConfig
from harl_fast.data.container.index import manifest_of
from harl_fast.data.container.manifest import (
    Manifest,
    check_labelled,
    containers_in,
    find_container,
)
from harl_fast.data.loader import Batch, EvalLoader
from harl_fast.data.order import spread
from harl_fast.data.views.color_device import Photometric
from harl_fast.errors import DataError
from harl_fast.eval.features import FeatureSet, extract
from harl_fast.eval.knn import knn_accuracy
from harl_fast.eval.ridge import ridge_probe

_BATCH = 128


class ProbeStopped(Exception):
    """The run was asked to stop while a probe was under way."""


class ReplacedError(DataError):
    """A container is another one than when the run began."""


def check_same(path: Path, known: Manifest, *, skip_broken: bool) -> None:
    """Raise ReplacedError if ``path`` holds another container than ``known`` describes."""
    if manifest_of(path, skip_broken=skip_broken).beton_sha256 != known.beton_sha256:
        raise ReplacedError(
            f"{path} was replaced by another container since the run began, which goes on with the "
            f"old one"
        )


class Probe:
    """Labelled images beside the training set, to judge a backbone by again and again.

    Training images are taken at even distances from the training split, test images from the
    validation split beside it. Without one, every third of the images taken from the training split
    is held out for the test (the network has seen it, but not its label).
    """

    def __init__(
        self,
        train: Path,
        manifest: Manifest,
        config: RunConfig,
        *,
        device: torch.device,
        threads: int,
    ) -> None:
        """train, manifest: the training container, as the run has it open.

        Raises DataError if the containers cannot serve.
        """
        self._size_px = config.data.views[0].size_px
        self._device, self._threads = device, threads
        self._check, data = config.data.check, config.data
        self._mean = data.mean
        self._prepare = Photometric((), mean=data.mean, std=data.std, seed=0).to(device).plain
        self._skip_broken = data.skip_broken
        check_labelled(train, manifest)
        count, judged = config.log.probe_images, config.log.probe_images // 2
        val = train
        if containers_in(train.parent, "val"):
            val = find_container(train.parent, "val")
            other = manifest_of(val, skip_broken=data.skip_broken)
            ids, test = spread(manifest.count, count), spread(other.count, judged)
            self._sets = ((train, manifest, ids), (val, other, test))
            self.held_out = False
        else:
            other = manifest
            ids = spread(manifest.count, count + judged)
            held = np.arange(len(ids)) % 3 == 2
            self._sets = ((train, manifest, ids[~held]), (train, manifest, ids[held]))
            self.held_out = True
        if manifest.classes != other.classes or len(manifest.classes) < 2:
            raise DataError(
                f"{train} has {len(manifest.classes)} classes and {val} {len(other.classes)}: the "
                f"online probe needs at least two, the same in both. Set log.probe_epochs=0, or "
                f"convert both splits from the same class folders"
            )
        self.classes = len(manifest.classes)

    def __call__(
        self,
        backbone: nn.Module,
        *,
        autocast: torch.dtype | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """Return "probe_knn" and "probe_linear", top-1 in percent, and "probe_s", the seconds.

        backbone: (B, 3, S, S) to (B, D, h, w), on the device. Raises ProbeStopped as soon as
        ``stopping`` says so, and ReplacedError if a container is another one by now.
        """
        start, encoder = time.monotonic(), _Plain(backbone)
        train, test = (
            self._features(encoder, path, known, ids, autocast=autocast, stopping=stopping)
            for path, known, ids in self._sets
        )
        knn = knn_accuracy(train, test, classes=self.classes, device=self._device)
        ridge = ridge_probe(train, test, classes=self.classes, device=self._device)
        return {
            "probe_knn": knn.top1,
            "probe_linear": ridge.metrics.top1,
            "probe_s": time.monotonic() - start,
        }

    def _features(
        self,
        encoder: nn.Module,
        path: Path,
        known: Manifest,
        ids: np.ndarray,
        *,
        autocast: torch.dtype | None,
        stopping: Callable[[], bool],
    ) -> FeatureSet:
        check_same(path, known, skip_broken=self._skip_broken)
        # Opened for the moment only: its buffers would be missed by the training's loader.
        loader = EvalLoader(
            path,
            size_px=self._size_px,
            batch=_BATCH,
            workers=self._threads,
            check=self._check,
            ids=ids,
            channels=len(self._mean),
            skip_broken=self._skip_broken,
        )
        try:
            return extract(
                encoder,
                _Until(loader, stopping),
                prepare=self._prepare,
                device=self._device,
                autocast=autocast,
                stream=io.StringIO(),
            )
        finally:
            loader.close()


class _Plain(nn.Module):
    """A backbone without its compiled form, which other shapes and modes would compile again."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.training = backbone.training

    def forward(self, images: Tensor) -> Tensor:
        """Return the backbone's map."""
        maps: Tensor = self.backbone.forward(images)
        return maps


class _Until:
    """A loader that ends with ProbeStopped when the run is asked to stop."""

    def __init__(self, loader: EvalLoader, stopping: Callable[[], bool]) -> None:
        self._loader, self._stopping = loader, stopping

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if self._stopping():
                raise ProbeStopped
            yield batch


@contextlib.contextmanager
def averaged_statistics(network: nn.Module) -> Iterator[None]:
    """Give BatchNorm its running statistics' means over ranks for a while; all ranks must call it.

    Afterwards they are, bit for bit, what they were.
    """
    buffers = [b for b in network.buffers() if b.is_floating_point()]
    before = [b.clone() for b in buffers]
    average_over_ranks(buffers)
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
