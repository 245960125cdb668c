"""The moving average by which the target network follows the online one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harl_fast.options import check_finite


@torch.no_grad()
def ema_update(
    target: list[Tensor], online: list[Tensor], *, tau: float, applied: Tensor | None = None
) -> None:
    """Move each target tensor to tau * target + (1 - tau) * online, in place (BYOL, equation 1).

    target, online: tensors of pairwise equal shape, and of one dtype and device; see `ema_pairs`.
    applied: 0-d bool on that device, whether the optimizer step took place. False leaves the
    target as it is, without waiting for the device; the online tensors must be finite. Raises
    ConfigError for a tau outside [0, 1].
    """
    check_finite(1.0, tau=tau)
    if applied is None:
        torch._foreach_lerp_(target, online, 1.0 - tau)
        return
    share = applied.to(target[0].dtype) * (1.0 - tau)
    weights = shaped_like(target, share) if share.is_cuda else [share] * len(target)
    torch._foreach_lerp_(target, online, weights)


def shaped_like(tensors: list[Tensor], value: Tensor) -> list[Tensor]:
    """Return a 0-d tensor's value in the shape and memory layout of each of the tensors.

    Only then does CUDA work on a list in a few kernels rather than one per tensor. They share the
    memory of the largest.
    """
    values = value.expand(max(tensor.numel() for tensor in tensors)).contiguous()
    return [values.as_strided(tensor.shape, tensor.stride()) for tensor in tensors]


def ema_pairs(target: nn.Module, online: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters of ``target`` and, in the same order, those of ``online``.

    They are matched by name. Every child module of ``target`` must have the same parameters in
    ``online``, which may have further children (the predictor). Raises ValueError otherwise.
    """
    followers = dict(target.named_parameters())
    children = dict(target.named_children())
    leaders = {
        name: parameter
        for name, parameter in online.named_parameters()
        if name.partition(".")[0] in children
    }
    unmatched = sorted(followers.keys() ^ leaders.keys()) or [
        name for name, follower in followers.items() if follower.shape != leaders[name].shape
    ]
    if unmatched:
        raise ValueError(
            f"target and online network differ in {len(unmatched)} parameters, the first being "
            f"'{unmatched[0]}'; build both from one configuration"
        )
    return list(followers.values()), [leaders[name] for name in followers]
