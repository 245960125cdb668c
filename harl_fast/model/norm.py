"""BatchNorm over groups of rows, and BatchNorm with statistics shared by all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

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
            normalise = self._local if world == 1 else self._over_ranks
            normalised, mean, var = normalise(widened(input).view(groups, -1, dim))
            count = rows // groups * world
            _track(self, mean.detach().mean(0), var.detach().mean(0) * (count / (count - 1)))
        return normalised.view(rows, dim).to(input.dtype)

    def _local(self, grouped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised (G, B, D) rows, and mean and biased variance (G, D)."""
        # torch's kernel per group: on CPU four times as fast as var_mean and arithmetic on all.
        parts = [
            torch.native_batch_norm(part, self.weight, self.bias, None, None, True, 0.0, self.eps)
            for part in grouped.unbind()
        ]
        mean, inverse = (torch.stack([part[place] for part in parts]) for place in (1, 2))
        # inverse: one over the deviation, with eps inside.
        return torch.cat([part[0] for part in parts]), mean, inverse.pow(-2) - self.eps

    def _over_ranks(self, grouped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Do as `_local` with the statistics of each group over all ranks."""
        mean, var = _joint(*torch.var_mean(grouped, dim=1, correction=0))
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (grouped - mean[:, None]) * scale[:, None] + self.bias, mean, var


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

    def restore(self) -> None:
        """Give values that are not finite those of the call before, without asking the device."""
        if not self._buffers:
            return
        now = self._joined()
        self._finite = torch.where(now.isfinite(), now, self._finite)
        pieces = self._finite.split([buffer.numel() for buffer in self._buffers])
        torch._foreach_copy_(self._buffers, pieces)

    def _joined(self) -> Tensor:
        return torch.cat(self._buffers)


class RankBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are those over all ranks, on CPU as on CUDA.

    The ranks must hold equally many images. torch.nn.SyncBatchNorm, which is faster, has no CPU
    form.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised (B, C, H, W) map."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        with without_autocast(input):
            values = widened(input)
            mean, var = _joint(*torch.var_mean(values, dim=(0, 2, 3), correction=0))
            scale = self.weight * torch.rsqrt(var + self.eps)
            shift = self.bias - mean * scale
            output = values * scale[:, None, None] + shift[:, None, None]
            count = dist.get_world_size() * input.numel() // input.shape[1]
            _track(self, mean.detach(), var.detach() * (count / (count - 1)))
        return output.to(input.dtype)


def share_statistics(module: nn.Module) -> None:
    """Make the BatchNorm layers inside a module take their statistics over all ranks, in place.

    By torch.nn.SyncBatchNorm where there is CUDA. Raises ConfigError on a CPU for a special form of
    BatchNorm, as some networks of timm have.
    """
    if torch.cuda.is_available():
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for parent in [*module.modules()]:
        for name, layer in parent.named_children():
            if type(layer) is nn.BatchNorm2d:
                setattr(parent, name, _over_ranks_2d(layer))
            elif isinstance(layer, nn.BatchNorm2d) and not isinstance(layer, RankBatchNorm2d):
                raise ConfigError(
                    f"BatchNorm of kind {type(layer).__name__} cannot share statistics over ranks "
                    f"on a CPU: set global_bn to false (--global-bn False), or use one rank"
                )


def _over_ranks_2d(layer: nn.BatchNorm2d) -> RankBatchNorm2d:
    """Return the same layer, with its own parameters and buffers, as a `RankBatchNorm2d`."""
    with torch.device("meta"):
        twin = RankBatchNorm2d(layer.num_features, eps=layer.eps, momentum=layer.momentum)
    twin._parameters.update(layer._parameters)
    twin._buffers.update(layer._buffers)
    return twin.train(layer.training)


class _RankSum(torch.autograd.Function):
    """Sum over ranks; each rank's gradient reaches every rank's summand, hence the same sum back.

    With losses averaged over ranks this is the gradient of the loss over the joined batch.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # ctx: torch gives it no public type
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _RankSum.forward(ctx, grads[0])


def _rank_sum(values: Tensor) -> Tensor:
    total: Tensor = _RankSum.apply(values)
    return total


def _joint(var: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over all ranks from each rank's variance and mean."""
    world = dist.get_world_size()
    mean = _rank_sum(local) / world
    # Law of total variance: within the ranks plus between them.
    return mean, _rank_sum(var + (local - mean).square()) / world
