"""L-BFGS's memory of a convex loss's curvature, which serves under any L2 penalty."""

from __future__ import annotations

import torch
from torch import Tensor

PAIRS = 20
"""Most steps that are remembered."""


class Pairs:
    """L-BFGS's memory in compact form (Byrd, Nocedal, Schnabel, Mathematical Programming 63, 1994).

    Rows of (m, (D + 1) K) matrices: steps, changes of the loss's gradient, and, for the present
    decay, changes of the whole gradient and these preconditioned.
    """

    def __init__(self, like: Tensor, *, penalised: Tensor) -> None:
        """Begin without a step.

        like: (D, K), of the shape, type and device of weights. penalised: (D, 1), 1 where the
        penalty counts, else 0.
        """
        self._penalised, self._shape = penalised, like.shape
        self._steps, self._data, self._changes, self._scaled = (
            like.new_zeros(PAIRS, like.numel()) for _ in range(4)
        )
        self._order: list[int] = []
        """Slots from the oldest pair to the newest."""
        self._step_change = torch.zeros(PAIRS, PAIRS, dtype=torch.float64)
        self._change_scaled = torch.zeros(PAIRS, PAIRS, dtype=torch.float64)
        self._inverse = torch.ones_like(like)
        self._decay = 0.0
        self._known: Tensor | None = None

    def clear(self) -> None:
        """Forget all pairs."""
        self._order, self._known = [], None

    def set_penalty(self, decay: float, expected: Tensor) -> None:
        """Make the pairs those of another penalty.

        expected: (D, K), roughly the diagonal of the loss's Hessian.
        """
        self._decay, self._known = decay, None
        self._inverse = 1.0 / (expected + decay * self._penalised)
        shape = (PAIRS, *self._shape)
        of_penalty = decay * self._penalised * self._steps.view(shape)
        torch.add(self._data.view(shape), of_penalty, out=self._changes.view(shape))
        torch.mul(self._changes.view(shape), self._inverse, out=self._scaled.view(shape))
        self._step_change = (self._steps @ self._changes.T).double().cpu()
        self._change_scaled = (self._scaled @ self._changes.T).double().cpu()

    def add(self, step: Tensor, data: Tensor, gradient: Tensor) -> None:
        """Note a step, the change of the loss's gradient over it, and the whole gradient after."""
        change = data + self._decay * self._penalised * step
        if not dot(step, change) > 0:
            self._known = None
            return
        used = len(self._order)
        slot = used if used < PAIRS else self._order.pop(0)
        self._order.append(slot)
        self._steps[slot], self._data[slot] = step.flatten(), data.flatten()
        self._changes[slot] = change.flatten()
        self._scaled[slot] = (self._inverse * change).flatten()
        both = torch.stack([change.flatten(), gradient.flatten()], 1)
        by_step = (self._steps @ both).double().cpu()
        by_change = (self._scaled @ both).double().cpu()
        self._step_change[:, slot] = by_step[:, 0]
        self._change_scaled[:, slot] = self._change_scaled[slot] = by_change[:, 0]
        # The next direction is of this gradient: its products are at hand.
        self._known = torch.stack([by_step[:, 1], by_change[:, 1]])

    def direction(self, gradient: Tensor) -> Tensor:
        """Return `inverse` of a gradient (D, K), in less time after `add` of the same."""
        return self._times(gradient, self._known)

    def inverse(self, vector: Tensor) -> Tensor:
        """Return the approximate inverse of the penalised Hessian times a (D, K) vector."""
        return self._times(vector, None)

    def _times(self, vector: Tensor, known: Tensor | None) -> Tensor:
        plain = self._inverse * vector
        if not self._order:
            return plain
        if known is None:
            flat = vector.flatten()
            known = torch.stack([m @ flat for m in (self._steps, self._scaled)]).double().cpu()
        order = torch.tensor(self._order)
        upper = self._step_change[order][:, order].triu()
        inner = self._change_scaled[order][:, order]
        newest = self._order[-1]
        scale = float(self._step_change[newest, newest] / self._change_scaled[newest, newest])
        by_step, by_change = known[:, order]
        solved = torch.linalg.solve_triangular(upper, by_step[:, None], upper=True)[:, 0]
        weighted = upper.diagonal() * solved + scale * (inner @ solved) - scale * by_change
        first = torch.linalg.solve_triangular(upper.T, weighted[:, None], upper=False)[:, 0]
        coefficients = torch.zeros(2, PAIRS, dtype=torch.float64)
        coefficients[0, order], coefficients[1, order] = first, -scale * solved
        of_steps, of_changes = coefficients.to(plain.device, plain.dtype)
        flat = of_steps @ self._steps + of_changes @ self._scaled
        return plain.mul_(scale).add_(flat.view_as(plain))


def dot(one: Tensor, other: Tensor) -> float:
    """Return the inner product of two tensors of one shape."""
    return float(torch.dot(one.flatten(), other.flatten()))
