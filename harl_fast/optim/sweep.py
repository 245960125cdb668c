"""LARS on a CPU in two sweeps over memory, where a step waits for memory and for nothing else.

Done operation by operation over all tensors, a step moves about 56 bytes a weight. Here each piece
of weights and gradients is read once for its norms, and once more with its momentum to be moved:
32 bytes. Figures that the host needs lie in its memory already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harl_fast.optim.layout import Plan, pieces


def fits(tensors: list[Tensor]) -> bool:
    """Return whether the sweeps apply: float32 in the host's memory, without gaps."""
    return all(
        t.device.type == "cpu"
        and t.dtype == torch.float32
        and (t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last))
        for t in tensors
    )


def squares(plan: Plan, weights: list[Tensor], grads: list[Tensor], *, decay: float) -> Tensor:
    """Return each parameter's sums of squares of w, g and d = g + decay w: (3, n_params) float64.

    Like three calls of `Plan.squares`, but each piece stays in the cache for all three, and |d|^2
    comes from |g|^2 + 2 decay w g + decay^2 |w|^2, except of pieces where it would cancel.
    """
    parts = [
        (_flat(w), _flat(g))
        for weight, grad in zip(plan.segments(weights), plan.segments(grads), strict=True)
        for w, g in zip(pieces(weight), pieces(grad), strict=True)
    ]
    if not parts:
        return plan.membership.new_zeros(3, plan.n_params)
    norm, rows = torch.linalg.vector_norm, []
    for w, g in parts:
        rows += [norm(w), norm(g), torch.dot(w, g)] if decay else [norm(w), norm(g)]
    found = torch.stack(rows).double().view(len(parts), -1)
    each = found[:, :2].square().T
    if not decay:
        return each[[0, 1, 1]] @ plan.membership
    apart = each[1] + decay**2 * each[0]
    d = apart + 2.0 * decay * found[:, 2]
    # The product's float32 error, 1e-6 of |w| |g|, is as small beside what is left of the sum.
    for place, cancels in enumerate(on_host(d < 0.5 * apart)):
        if cancels:
            w, g = parts[place]
            d[place] = norm(torch.add(g, w, alpha=decay)).double().square()
    return torch.cat([each, d[None]]) @ plan.membership


def _flat(piece: Tensor) -> Tensor:
    """Return the elements of a tensor without gaps in their order in memory, as a view."""
    return piece.as_strided((piece.numel(),), (1,))


def move(
    plan: Plan,
    weights: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    ratio: Tensor,
    *,
    lr: float,
    decay: float,
    momentum: float,
    nesterov: bool,
    found_inf: Tensor,
) -> None:
    """Do v = momentum v + ratio (g + decay w) and w -= lr v (or Nesterov's form), in place.

    ratio: (n_params,) float64. Gradients are overwritten. found_inf: () float32, 1 skips all.
    """
    factors = ratio[plan.owners]
    # torch's kernel divides g by a scale and then adds the decay: ratio is in both of them.
    scales = factors.reciprocal().float().unbind()
    parts = (plan.segments(tensors) for tensors in (weights, grads, buffers))
    for w, g, v, scale, factor in zip(*parts, scales, on_host(factors), strict=True):
        torch._fused_sgd_(
            [w],
            [g],
            [v],
            weight_decay=decay * factor,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=nesterov,
            maximize=False,
            is_first_step=False,
            grad_scale=scale,
            found_inf=found_inf,
        )


def on_host(values: Tensor) -> list[Any]:
    """Return the values of a (N,) tensor that lies in the host's memory."""
    assert values.device.type == "cpu"
    found: list[Any] = values.tolist()
    return found
