"""BatchNorm over groups of rows, and BatchNorm with statistics shared by all ranks.

Over ranks each pass of a layer takes one collective and never waits for a device, on NCCL as on
gloo. `torch.nn.SyncBatchNorm` asks the device for its counts in every forward pass, breaks
`torch.compile`'s graphs and has no CPU form; it allows batches of unequal size, which there are
none of here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, library, nn

from harl_fast.errors import ConfigError
from harl_fast.model.precision import widened, without_autocast


class GroupedBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d that normalises each group of consecutive rows by the group's own statistics.

    In training the outputs and gradients equal those of one call per group. The running statistics
    move once, by the mean of the groups' statistics. With ``synced`` the statistics of each group
    are those over all ranks of the default process group, which must hold equally many rows.
    """

    synced: bool = False

    def forward(self, input: Tensor, *, groups: int = 1) -> Tensor:
        """Return the normalised rows. input: (G * B, D), rows of one group adjacent."""
        if not self.training:
            return super().forward(input)
        rows, dim = input.shape
        world = dist.get_world_size() if self.synced and dist.is_initialized() else 1
        if rows % groups or rows * world < 2 * groups:
            raise ValueError(
                f"BatchNorm got {rows} rows in {groups} groups; each group needs equally many "
                f"rows, and at least 2 over all ranks that share statistics"
            )
        with without_autocast(input):
            if world == 1:
                normalised, mean, var = self._local(widened(input).view(groups, -1, dim))
            else:
                normalised, mean, var = rank_norm(input, self.weight, self.bias, self.eps, groups)
            count = rows // groups * world
            _track(self, mean.detach().mean(0), var.detach().mean(0) * (count / (count - 1)))
        return normalised.to(input.dtype)

    def _local(self, grouped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised rows (G * B, D) of (G, B, D), mean and biased variance (G, D)."""
        # torch's kernel per group: on CPU four times as fast as var_mean and arithmetic on all.
        parts = [
            torch.native_batch_norm(part, self.weight, self.bias, None, None, True, 0.0, self.eps)
            for part in grouped.unbind()
        ]
        mean, inverse = (torch.stack([part[place] for part in parts]) for place in (1, 2))
        # inverse: one over the deviation, with eps inside.
        return torch.cat([part[0] for part in parts]), mean, inverse.pow(-2) - self.eps


def _track(layer: nn.modules.batchnorm._NormBase, mean: Tensor, var: Tensor) -> None:
    """Move running statistics towards a batch's mean and unbiased variance, both (D,)."""
    assert layer.running_mean is not None and layer.running_var is not None
    assert layer.num_batches_tracked is not None and layer.momentum is not None
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), layer.momentum)
    layer.running_var.lerp_(var.to(layer.running_var.dtype), layer.momentum)
    layer.num_batches_tracked.add_(1)


class FiniteStatistics:
    """Keeps what is not finite out of the running statistics of BatchNorm layers.

    A moving average that has taken one NaN, as of an activation beyond float16, keeps it for ever,
    and the network could never be evaluated again.
    """

    def __init__(self, *networks: nn.Module) -> None:
        """Take the statistics as they are for finite."""
        layers = [layer for network in networks for layer in network.modules()]
        self._buffers: list[Tensor] = [
            buffer
            for layer in layers
            if isinstance(layer, nn.modules.batchnorm._NormBase)
            for buffer in (layer.running_mean, layer.running_var)
            if buffer is not None
        ]
        self._finite = self._joined() if self._buffers else torch.empty(0)
        self._pieces = self._finite.split([buffer.numel() for buffer in self._buffers])

    def restore(self) -> None:
        """Give values that are not finite those of the call before, without asking the device."""
        if not self._buffers:
            return
        now = self._joined()
        torch.where(now.isfinite(), now, self._finite, out=self._finite)
        torch._foreach_copy_(self._buffers, self._pieces)

    def _joined(self) -> Tensor:
        return torch.cat(self._buffers)


class RankBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are those over all ranks, on CPU as on CUDA.

    The ranks must hold equally many images. Submodules, such as an activation, come after it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised (B, C, H, W) map."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            output = super().forward(input)
        else:
            with without_autocast(input):
                output, mean, var = rank_norm(input, self.weight, self.bias, self.eps, 1)
                count = dist.get_world_size() * input.numel() // input.shape[1]
                _track(self, mean.detach()[0], var.detach()[0] * (count / (count - 1)))
        for module in self.children():
            output = module(output)
        return output


def share_statistics(module: nn.Module, *, also: tuple[type[nn.Module], ...] = ()) -> None:
    """Make the BatchNorm layers inside a module take their statistics over all ranks, in place.

    also: kinds of BatchNorm2d that apply their submodules, and do nothing else, after it. Raises
    ConfigError for other kinds, as some networks of timm have.
    """
    for parent in [*module.modules()]:
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm2d) and type(layer) in (nn.BatchNorm2d, *also):
                setattr(parent, name, _over_ranks_2d(layer))
            elif isinstance(layer, nn.BatchNorm2d) and not isinstance(layer, RankBatchNorm2d):
                raise ConfigError(
                    f"BatchNorm of kind {type(layer).__name__} cannot share statistics over ranks: "
                    f"set model.sync_bn to heads or none (in fine-tuning --global-bn False), or "
                    f"use one rank"
                )


def _over_ranks_2d(layer: nn.BatchNorm2d) -> RankBatchNorm2d:
    """Return the same layer, with its own parameters and buffers, as a `RankBatchNorm2d`."""
    with torch.device("meta"):
        twin = RankBatchNorm2d(layer.num_features, eps=layer.eps, momentum=layer.momentum)
    for kind in ("_parameters", "_buffers", "_modules"):
        getattr(twin, kind).update(getattr(layer, kind))
    return twin.train(layer.training)


# Operations of their own, which torch.compile calls without looking inside.


@library.custom_op("harl_fast::rank_norm", mutates_args=())
def rank_norm(
    rows: Tensor, weight: Tensor, bias: Tensor, eps: float, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows or maps, normalised by the statistics of their group over all ranks.

    rows: (G * B, D, ...), equally many on all ranks; half precision keeps its type. weight, bias:
    (D,). Returns the normalised values, which like those of other layers may be changed in place,
    and mean and biased variance (G, D), which carry no gradient. With losses averaged over ranks
    the gradients are those of the loss over the joined batch. All ranks must call it; one
    collective each way.
    """
    parts = rows.chunk(groups)
    mean, var = _joint_statistics(torch.stack([_statistics(part) for part in parts]))
    normalised = [
        _normalised(*each, weight, bias, eps) for each in zip(parts, mean, var, strict=True)
    ]
    return _together(normalised), mean, var


@library.custom_op("harl_fast::rank_norm_backward", mutates_args=())
def _rank_norm_backward(
    grad: Tensor, rows: Tensor, weight: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the rows or maps, and (2, D) this rank's of weight and bias."""
    parts = rows.chunk(len(mean))
    # As if mean and variance were constant: scaled gradients, and sums of grad * x^ and of grad.
    constant = [
        torch.ops.aten.native_batch_norm_backward(
            *(g, x, weight, m, v, None, None, False, eps),
            [True, True, True],
        )
        for g, x, m, v in zip(grad.chunk(len(mean)), parts, mean, var, strict=True)
    ]
    own = torch.stack([torch.stack(sums) for _, *sums in constant])
    total = own.clone()
    dist.all_reduce(total)
    count = dist.get_world_size() * parts[0].numel() // mean.shape[1]
    # What mean and variance add: minus the mean of grad and x^ times the mean of grad * x^.
    shifts = (total / -count) * (weight * torch.rsqrt(var + eps))[:, None]
    added = [
        scaled.add_(_normalised(x, m, v, by, to, eps))
        for (scaled, *_), x, m, v, (by, to) in zip(constant, parts, mean, var, shifts, strict=True)
    ]
    return _together(added), own.sum(0)


def _statistics(part: Tensor) -> Tensor:
    """Return mean and biased variance of each channel of (B, D, ...), stacked."""
    if part.device.type == "cpu":
        part = widened(part)  # there, unlike on CUDA, the figures would come in half precision
    return torch.stack(torch.batch_norm_update_stats(part, None, None, 0.0))


def _joint_statistics(own: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (G, D) over all ranks from each rank's own (G, 2, D)."""
    mean, var = _gathered(own).unbind(2)
    joint = mean.mean(0)
    # Law of total variance: within the ranks plus between them.
    return joint, (var + (mean - joint).square()).mean(0)


def _gathered(own: Tensor) -> Tensor:
    """Return all ranks' tensors, stacked."""
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    return torch.stack(found)


def _normalised(
    part: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    # Given statistics are what torch's kernels use in evaluation.
    return torch.native_batch_norm(part, weight, bias, mean, var, False, 0.0, eps)[0]


def _together(parts: list[Tensor]) -> Tensor:
    """Return tensors joined along the first axis; one alone keeps its memory, and so its layout."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@rank_norm.register_fake
def _(
    rows: Tensor, weight: Tensor, bias: Tensor, eps: float, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    mean = weight.new_empty(groups, rows.shape[1])
    return torch.empty_like(rows), mean, torch.empty_like(mean)


@_rank_norm_backward.register_fake
def _(
    grad: Tensor, rows: Tensor, weight: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), weight.new_empty(2, len(weight))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    rows, weight, _, ctx.eps, _ = inputs
    ctx.save_for_backward(rows, weight, *output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    values, own = _rank_norm_backward(grad, *ctx.saved_tensors, ctx.eps)
    return values, *own.unbind(), None, None


rank_norm.register_autograd(_backward, setup_context=_keep)
