"""L2-regularised logistic regression, solved to its optimum for many penalties in one sweep.

For each C the head minimises, over N rows, C times the sum of softmax cross entropies plus half the
squared norm of the weights; biases are free. That is scikit-learn's objective, and the protocol by
which SimCLR and DINOv2 judge transfer. What makes one sweep cheap:

- Features are rotated once onto their principal axes. There Boehning's bound on the Hessian, half
  the features' covariance (Multinomial logistic regression algorithm, Annals of the Institute of
  Statistical Mathematics 44, 1992), is diagonal and preconditions every C.
- The penalties are taken in ascending order. Each solution starts from a quadratic extrapolation of
  the last three over log C.
- L-BFGS keeps its pairs from one C to the next. The change of a gradient is that of the loss, which
  is kept, plus that of the penalty, which is known for any C.
- The loss and its gradient are computed from differences of scores to the true class's, so that
  float32 suffices even where all training rows are right and the loss is a millionth.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harl_fast.errors import DataError
from harl_fast.eval.results import Head

CS = tuple(10.0 ** (-6.0 + 11.0 * step / 44) for step in range(45))
"""The penalties' reciprocals: 45 in equal ratios from 1e-6 to 1e5, as SimCLR and DINOv2 take."""
TOLERANCE = 2e-8
"""Relative distance to the optimum, as L-BFGS estimates it, at which a solution counts as found."""
_PAIRS = 20
_MOST_STEPS = 500
"""For one C in float32, and then again in float64."""
_BLOCK = 1 << 18
"""Class scores that are computed at once: they stay in a core's cache."""
_BLOCK_CUDA = 1 << 26
_ABSENT = -1e9
"""Bias of a class without a training row: its optimum is minus infinity."""


@dataclass(frozen=True)
class Optimum:
    """The solution for one C."""

    c: float
    objective: float
    """C times the sum of losses, plus half the squared norm of the weights."""
    head: Head
    """Of the features as they were given, on their device."""
    converged: bool
    evaluations: int
    """Passes over the rows."""


def optima(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    cs: Sequence[float] = CS,
    start: Head | None = None,
    tolerance: float = TOLERANCE,
) -> Iterator[Optimum]:
    """Yield the optimum for each C, ascending.

    features: (N, D) float32 on the device that computes. labels: (N,) int64 there, in [0, classes).
    start: a head near the first solution. tolerance: relative, of the objective. Raises DataError
    for rows of fewer than two classes.
    """
    present = torch.bincount(labels, minlength=classes).nonzero()[:, 0]
    if len(present) < 2:
        raise DataError(
            f"logistic regression: the training rows are of {len(present)} class; it takes two to "
            f"be told apart"
        )
    number = torch.full((classes,), -1, device=labels.device)
    number[present] = torch.arange(len(present), device=labels.device)
    problem = _Problem(features, number[labels], classes=len(present))
    path = _Path(problem, tolerance=tolerance)
    if start is not None:
        path.begin(problem.rotated(Head(start.weight[present], start.bias[present])))
    for c in sorted(cs):
        weight, loss, converged, evaluations = path.solve(c)
        found = problem.head(weight)
        head = Head(
            features.new_zeros(classes, features.shape[1]),
            features.new_full((classes,), _ABSENT),
        )
        head.weight[present], head.bias[present] = found.weight, found.bias
        yield Optimum(c, loss * c * len(labels), head, converged, evaluations)


class _Problem:
    """Mean loss and gradient on rotated features, and the way back to the given ones."""

    def __init__(self, features: Tensor, labels: Tensor, *, classes: int) -> None:
        self.mean = features.mean(0)
        centred = features - self.mean
        covariance = (centred.T @ centred).double() / len(features)
        variance, axes = torch.linalg.eigh(covariance)
        self.axes = axes.float()
        self.rows = torch.cat([centred @ self.axes, features.new_ones(len(features), 1)], 1)
        """(N, D + 1): the last column is the bias's."""
        self.labels, self.classes = labels[:, None], classes
        self.variance = torch.cat([variance.clamp_min(0), variance.new_ones(1)]).float()[:, None]
        self.penalised = torch.ones_like(self.variance)
        self.penalised[-1] = 0
        self.evaluations = 0

    def head(self, weight: Tensor) -> Head:
        """Return (D + 1, K) rotated weights as a head of the given features."""
        plain = (self.axes.double() @ weight[:-1].double()).T
        return Head(plain.float(), (weight[-1].double() - plain @ self.mean.double()).float())

    def rotated(self, head: Head) -> Tensor:
        """Return the inverse of `head`."""
        weight = self.axes.T @ head.weight.T
        return torch.cat([weight, (head.bias + head.weight @ self.mean)[None]])

    def prior(self) -> Tensor:
        """Return the optimum without features: the logarithms of the classes' shares."""
        counts = torch.bincount(self.labels[:, 0], minlength=self.classes)
        weight = self.rows.new_zeros(self.rows.shape[1], self.classes)
        weight[-1] = (counts / counts.sum()).log()
        return weight

    def __call__(self, weight: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss in nats and its gradient (D + 1, K), in the rows' dtype."""
        self.evaluations += 1
        gradient, loss = torch.zeros_like(weight), 0.0
        block = _BLOCK_CUDA if weight.is_cuda else _BLOCK
        size = max(1, block // self.classes)
        for rows, labels in zip(self.rows.split(size), self.labels.split(size), strict=True):
            scores = rows @ weight
            scores.sub_(scores.gather(1, labels))
            largest = scores.amax(1, keepdim=True)  # 0 or more: the true class's is 0
            scores.sub_(largest).exp_().scatter_(1, labels, 0.0)
            others, own = scores.sum(1, keepdim=True), (-largest).exp_()
            total = own + others
            losses = largest + torch.where(largest > 0, total.log(), others.log1p())
            loss += float(losses.double().sum())
            # The true class's probability minus one, without the cancellation.
            gradient.addmm_(rows.T, scores.scatter_(1, labels, -others).div_(total))
        return loss / len(self.rows), gradient.div_(len(self.rows))


@dataclass
class _Point:
    """A weight with the loss and gradient of the data there, without the penalty."""

    weight: Tensor
    loss: float
    gradient: Tensor

    def value(self, decay: float, penalised: Tensor) -> float:
        """Return the penalised mean loss."""
        squares = (self.weight * penalised).double().square().sum()
        return self.loss + 0.5 * decay * float(squares)


class _Path:
    """Solutions of one problem for one C after another."""

    def __init__(self, problem: _Problem, *, tolerance: float) -> None:
        self._problem, self._tolerance = problem, tolerance
        self._solved: list[tuple[float, _Point]] = []
        self._pairs = _Pairs(problem)
        self._first = problem.prior()
        self._slopes: deque[float] = deque(maxlen=5)
        """Of the last steps."""
        self._rate = 0.5
        """By which the slopes shrank per step, the last time that it was seen."""

    def begin(self, weight: Tensor) -> None:
        """Start the first solution from a (D + 1, K) weight."""
        self._first = weight

    def solve(self, c: float) -> tuple[Tensor, float, bool, int]:
        """Return the weight (D + 1, K), the penalised mean loss, whether found, evaluations."""
        before, decay = self._problem.evaluations, 1.0 / (c * len(self._problem.rows))
        point = self._start(c, decay)
        self._pairs.set_decay(decay)
        converged = False
        for dtype in (torch.float32, torch.float64):
            if dtype == torch.float64:
                self._to_double()
                weight = point.weight.double()
                point = _Point(weight, *self._problem(weight))
                self._pairs.set_decay(decay)
            point, converged = self._descend(point, decay)
            if converged or self._problem.rows.dtype == torch.float64:
                break
        self._solved = [*self._solved[-2:], (c, point)]
        value = point.value(decay, self._problem.penalised)
        return point.weight, value, converged, self._problem.evaluations - before

    def _to_double(self) -> None:
        """Go on in float64, where float32's rounding hides the way down."""
        problem = self._problem
        problem.rows = problem.rows.double()
        problem.variance, problem.penalised = problem.variance.double(), problem.penalised.double()
        self._solved = [
            (c, _Point(p.weight.double(), p.loss, p.gradient.double())) for c, p in self._solved
        ]
        self._pairs = _Pairs(problem)

    def _start(self, c: float, decay: float) -> _Point:
        if not self._solved:
            return _Point(self._first, *self._problem(self._first))
        last = self._solved[-1][1]
        if len(self._solved) < 3 or not self._evenly_spaced(c):
            return last
        a, b = self._solved[-2][1].weight, self._solved[-3][1].weight
        weight = 3.0 * (last.weight - a) + b
        ahead = _Point(weight, *self._problem(weight))
        penalised = self._problem.penalised
        better = ahead.value(decay, penalised) < last.value(decay, penalised)
        return ahead if better else last

    def _evenly_spaced(self, c: float) -> bool:
        steps = [math.log(each) for each, _ in self._solved] + [math.log(c)]
        widths = [after - before for before, after in itertools.pairwise(steps)]
        return max(widths) < 1.01 * min(widths)

    def _descend(self, point: _Point, decay: float) -> tuple[_Point, bool]:
        penalised = self._problem.penalised
        full = point.gradient + decay * penalised * point.weight
        self._slopes.clear()
        for _ in range(_MOST_STEPS):
            step = self._pairs.direction(full)
            slope = _dot(full, step)
            if not slope > 0:  # rounding: the pairs no longer describe a convex function
                self._pairs.clear()
                step = self._pairs.direction(full)
                slope = _dot(full, step)
            if self._left(slope) <= self._tolerance * point.value(decay, penalised):
                return point, True
            after, gradient = self._search(point, step, slope, decay)
            self._slopes.append(slope)
            self._pairs.add(after.weight - point.weight, after.gradient - point.gradient, gradient)
            point, full = after, gradient
        return point, False

    def _left(self, slope: float) -> float:
        """Return how far above the optimum a point is, estimated from the slope of its step.

        Half the slope is what the quadratic model promises. Where the model is poor the slopes
        shrink slowly, by r a step: then it takes all of the series, 1 / (1 - r) times that.
        """
        if self._slopes:
            steps = len(self._slopes)
            self._rate = min((slope / self._slopes[0]) ** (1.0 / steps), 0.99)
        return 0.5 * slope / (1.0 - self._rate)

    def _search(
        self, point: _Point, step: Tensor, slope: float, decay: float
    ) -> tuple[_Point, Tensor]:
        """Return a point along minus ``step`` and the full gradient there.

        The function is convex, so that its slopes alone tell where to stop: Wolfe's conditions
        without its values, whose differences rounding hides first.
        """
        length = 1.0
        for _ in range(20):
            weight = point.weight - length * step
            after = _Point(weight, *self._problem(weight))
            gradient = after.gradient + decay * self._problem.penalised * weight
            there = _dot(gradient, step)  # minus the slope at the new point
            if there < -0.5 * slope:
                length *= max(0.1, slope / (slope - there))
            elif there > 0.9 * slope and length < 8:
                length *= 3.0
            else:
                break
        return after, gradient


class _Pairs:
    """L-BFGS's memory in compact form (Byrd, Nocedal, Schnabel, Mathematical Programming 63, 1994).

    Rows of (m, (D + 1) K) matrices: steps, changes of the loss's gradient, and, for the present
    decay, changes of the whole gradient and these preconditioned.
    """

    def __init__(self, problem: _Problem) -> None:
        self._problem = problem
        size = problem.rows.shape[1] * problem.classes
        self._steps, self._data, self._changes, self._scaled = (
            problem.rows.new_zeros(_PAIRS, size) for _ in range(4)
        )
        self._order: list[int] = []
        """Slots from the oldest pair to the newest."""
        self._step_change = torch.zeros(_PAIRS, _PAIRS, dtype=torch.float64)
        self._change_scaled = torch.zeros(_PAIRS, _PAIRS, dtype=torch.float64)
        self._inverse = problem.variance
        self._decay = 0.0
        self._known: Tensor | None = None

    def clear(self) -> None:
        """Forget all pairs."""
        self._order, self._known = [], None

    def set_decay(self, decay: float) -> None:
        """Make the pairs those of another penalty."""
        problem, self._decay, self._known = self._problem, decay, None
        self._inverse = 1.0 / (0.5 * problem.variance + decay * problem.penalised)
        shape = (_PAIRS, problem.rows.shape[1], problem.classes)
        steps = self._steps.view(shape)
        torch.add(
            self._data.view(shape), decay * problem.penalised * steps, out=self._changes.view(shape)
        )
        torch.mul(self._changes.view(shape), self._inverse, out=self._scaled.view(shape))
        self._step_change = (self._steps @ self._changes.T).double().cpu()
        self._change_scaled = (self._scaled @ self._changes.T).double().cpu()

    def add(self, step: Tensor, data: Tensor, gradient: Tensor) -> None:
        """Note a step, the change of the loss's gradient over it, and the whole gradient after."""
        change = data + self._decay * self._problem.penalised * step
        if not _dot(step, change) > 0:
            self._known = None
            return
        used = len(self._order)
        slot = used if used < _PAIRS else self._order.pop(0)
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
        """Return the approximate inverse Hessian times a gradient (D + 1, K)."""
        plain = self._inverse * gradient
        if not self._order:
            return plain
        if self._known is None:
            flat = gradient.flatten()
            products = [matrix @ flat for matrix in (self._steps, self._scaled)]
            self._known = torch.stack(products).double().cpu()
        order = torch.tensor(self._order)
        upper = self._step_change[order][:, order].triu()
        inner = self._change_scaled[order][:, order]
        curvature, newest = upper.diagonal(), self._order[-1]
        scale = float(self._step_change[newest, newest] / self._change_scaled[newest, newest])
        by_step, by_change = self._known[:, order]
        solved = torch.linalg.solve_triangular(upper, by_step[:, None], upper=True)[:, 0]
        weighted = curvature * solved + scale * (inner @ solved) - scale * by_change
        first = torch.linalg.solve_triangular(upper.T, weighted[:, None], upper=False)[:, 0]
        coefficients = torch.zeros(2, _PAIRS, dtype=torch.float64)
        coefficients[0, order], coefficients[1, order] = first, -scale * solved
        of_steps, of_changes = coefficients.to(plain.device, plain.dtype)
        flat = of_steps @ self._steps + of_changes @ self._scaled
        return plain.mul_(scale).add_(flat.view_as(plain))


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.flatten(), other.flatten()))
