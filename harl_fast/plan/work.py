"""What the network computes and keeps per image, counted on the configured model itself.

The real model runs on fake tensors: shapes without numbers, of which
`torch.utils.flop_counter` counts the products (2 FLOP per multiplication and addition).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from harl_fast.config import LossConfig, ModelConfig, RunConfig
from harl_fast.model.backbone import Backbone
from harl_fast.model.backbones import build_backbone
from harl_fast.model.harl import HARL, Target

_BATCH = 97
"""A prime that no layer's width is a multiple of: it tells activations from copies of weights."""


@dataclass(frozen=True)
class Work:
    """Of one image in a training step, all its views together."""

    flops: float
    """Forward and backward of the online network, and `target_flops`."""
    target_flops: float
    """Forward of the target, which takes no gradient."""
    outputs: float
    """Elements that the convolutions and linear layers of the online backbone write."""
    target_outputs: float
    """And of the target's."""
    saved_bytes: float
    """Activations that the backward pass needs."""
    parameters: int
    target_parameters: int


def pretraining_work(config: RunConfig, sizes: tuple[int, ...], *, half: bool) -> Work:
    """Return the work of a pretraining step with the configured views, of these sides in pixels.

    half: under autocast to bfloat16. Raises ConfigError.
    """
    # Neither changes what is computed, and some of the first cannot be built without CUDA.
    model = config.model.model_copy(update={"sync_bn": "none", "compile": False})
    roles = tuple(view.role for view in config.data.views)
    return _pretraining_work(model, config.loss.model_dump_json(), sizes, roles, half)


@functools.cache
def _pretraining_work(
    model: ModelConfig, loss: str, sizes: tuple[int, ...], roles: tuple[str, ...], half: bool
) -> Work:
    with torch.device("meta"):
        harl = HARL(model, LossConfig.model_validate_json(loss), roles=roles)
    harl.watched = False
    cells = [harl.feature_size(size) for size in sizes]

    def forward() -> Tensor:
        views = [torch.empty(_BATCH, model.in_channels, size, size) for size in sizes]
        weights = [torch.empty(_BATCH, side, side) for side in cells]
        loss_value: Tensor = harl(views, weights, alpha=0.5, beta=0.5)[0]
        return loss_value

    return _counted(harl, harl.backbone, forward, half=half, target=harl.target)


@functools.cache
def supervised_work(model: ModelConfig, size_px: int, *, half: bool = True) -> Work:
    """Return the work of supervised training: the backbone alone, forward and backward."""
    with torch.device("meta"):
        backbone = build_backbone(model)

    def forward() -> Tensor:
        images = torch.empty(_BATCH, model.in_channels, size_px, size_px)
        maps: Tensor = backbone(images)
        return maps.float().mean()

    return _counted(backbone, backbone, forward, half=half)


def _counted(
    network: nn.Module,
    backbone: Backbone,
    forward: Callable[[], Tensor],
    *,
    half: bool,
    target: Target | None = None,
) -> Work:
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.train().to_empty(device="cpu")
        flops = FlopCounterMode(display=False)
        target_flops = [0]

        def target_done(module: nn.Module, inputs: Any, output: Tensor) -> None:
            target_flops[0] = flops.get_total_flops()

        outputs, target_outputs = _written(backbone), [0]
        if target is not None:
            target_outputs = _written(target.backbone)
            # `HARL.forward` runs the target first, and of it the projectors last.
            for projector in (target.projector, target.region_projector):
                if projector is not None:
                    projector.register_forward_hook(target_done)
        with flops:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half), _saved() as saved:
                loss = forward()
            loss.backward()
        # Copies of the weights in bfloat16 are saved, too, but once and not per image.
        kept = sum(size for shape, size in saved if shape and shape[0] % _BATCH == 0)
    return Work(
        flops=flops.get_total_flops() / _BATCH,
        target_flops=target_flops[0] / _BATCH,
        outputs=sum(outputs) / _BATCH,
        target_outputs=sum(target_outputs) / _BATCH,
        saved_bytes=kept / _BATCH,
        parameters=sum(weight.numel() for weight in network.parameters()),
        target_parameters=sum(weight.numel() for weight in target.parameters()) if target else 0,
    )


def _written(backbone: nn.Module) -> list[int]:
    """Return a list that gets the elements of all that convolutions and linear layers write."""
    sizes: list[int] = []
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _, inputs, output: sizes.append(output.numel()))
    return sizes


@contextmanager
def _saved() -> Iterator[list[tuple[tuple[int, ...], int]]]:
    """Collect shape and bytes of each storage that is saved for the backward pass."""
    found: list[tuple[tuple[int, ...], int]] = []
    seen = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen[storage._cdata] = storage  # alive, so that no other takes its place
            found.append((tuple(tensor.shape), storage.nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
