"""One frozen pass: values, order, modes, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from harl_fast.errors import CheckpointError, DataError
from harl_fast.eval.features import FeatureSet, SizedLoader, extract

CPU = torch.device("cpu")


class Batch(NamedTuple):
    views: tuple[Tensor, ...]
    labels: Tensor


class Loader:
    """Batches in one reused buffer, as the real loader hands them out."""

    def __init__(self, images: Tensor, labels: Tensor, *, batch: int, announced: int) -> None:
        self.images, self.labels, self.batch, self.announced = images, labels, batch, announced

    def __len__(self) -> int:
        return self.announced

    def __iter__(self) -> Iterator[Batch]:
        buffer = torch.zeros(self.batch, *self.images.shape[1:], dtype=torch.uint8)
        for start in range(0, len(self.images), self.batch):
            part = self.images[start : start + self.batch]
            buffer[: len(part)] = part
            yield Batch((buffer[: len(part)],), self.labels[start : start + self.batch])


def loader(count: int = 11, *, announced: int | None = None) -> Loader:
    images = torch.randint(
        256, (count, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return Loader(images, torch.arange(count) % 3, batch=4, announced=announced or count)


def encoder() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5), nn.Dropout(0.5))


def prepare(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 255 - 0.5


def run(source: SizedLoader, model: nn.Module) -> FeatureSet:
    return extract(model, source, prepare=prepare, device=CPU)


def test_features_are_the_spatial_means_in_the_loaders_order() -> None:
    source, model = loader(), encoder().eval()
    got = run(source, model)
    with torch.no_grad():
        expected = torch.stack(
            [model(prepare(image[None]))[0].double().mean((1, 2)) for image in source.images]
        )
    # Nine places are summed in float32, and a batch of four may convolve in another order.
    torch.testing.assert_close(got.features.double(), expected, rtol=1e-5, atol=1e-6)
    assert got.features.dtype == torch.float32
    assert torch.equal(got.labels, source.labels)


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_is_judged_in_eval_mode_and_left_as_it_came(training: bool) -> None:
    model = encoder().train(training)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(run(loader(), model).features, run(loader(), model.eval()).features)
    model.train(training)
    run(loader(), model)
    assert all(module.training == training for module in model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_autocast_computes_in_the_asked_type_and_stores_float32() -> None:
    seen = []
    model = encoder()
    model.append(nn.Identity())
    model[-1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    got = extract(model, loader(), prepare=prepare, device=CPU, autocast=torch.bfloat16)
    assert set(seen) == {torch.bfloat16}
    assert got.features.dtype == torch.float32


@pytest.mark.parametrize("announced", [10, 12])
def test_another_number_of_samples_than_announced_is_refused(announced: int) -> None:
    with pytest.raises(DataError, match=f"{announced} samples were announced"):
        run(loader(11, announced=announced), encoder())


def test_an_encoder_that_diverged_is_refused() -> None:
    model = encoder()
    model[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="11 of 11 samples have features that are not finite"):
        run(loader(), model)
