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
from harl_fast.eval.lbfgs import Pairs, dot
from harl_fast.eval.results import Head

CS = tuple(10.0 ** (-6.0 + 11.0 * step / 44) for step in range(45))
"""The penalties' reciprocals: 45 in equal ratios from 1e-6 to 1e5, as SimCLR and DINOv2 take."""
TOLERANCE = 1e-7
"""Relative distance to the optimum, as Newton's step tells it, at which a solution is found."""
_MOST_DOUBT = 1e3
_COARSE = 1e-5
"""Tolerance above which L-BFGS's estimate of the rest is good enough."""
_DELAY = 8
_REFRESH = 12
"""Steps after which the expected Hessian is that of the present weights."""
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
        self.axes, self._features = axes, features
        self.rows = torch.cat([centred @ axes.float(), features.new_ones(len(features), 1)], 1)
        """(N, D + 1): the last column is the bias's."""
        self.labels, self.classes = labels[:, None], classes
        self.variance = torch.cat([variance.clamp_min(0), variance.new_ones(1)]).float()[:, None]
        self.penalised = torch.ones_like(self.variance)
        self.penalised[-1] = 0
        self.evaluations = 0
        self._spread = torch.full_like(self.rows[0, :1], 0.5)

    def head(self, weight: Tensor) -> Head:
        """Return (D + 1, K) rotated weights as a head of the given features."""
        plain = (self.axes @ weight[:-1].double()).T
        return Head(plain.float(), (weight[-1].double() - plain @ self.mean.double()).float())

    def rotated(self, head: Head) -> Tensor:
        """Return the inverse of `head`."""
        weight = self.axes.float().T @ head.weight.T
        return torch.cat([weight, (head.bias + head.weight @ self.mean)[None]])

    def to_double(self) -> None:
        """Go on in float64."""
        centred = self._features.double() - self.mean.double()
        self.rows = torch.cat([centred @ self.axes, centred.new_ones(len(centred), 1)], 1)
        self.variance, self.penalised = self.variance.double(), self.penalised.double()

    def prior(self) -> Tensor:
        """Return the optimum without features: the logarithms of the classes' shares."""
        counts = torch.bincount(self.labels[:, 0], minlength=self.classes)
        weight = self.rows.new_zeros(self.rows.shape[1], self.classes)
        weight[-1] = (counts / counts.sum()).log()
        return weight

    def pairs(self) -> Pairs:
        """Return an empty memory of this loss's curvature, bounded as Boehning does."""
        like = self.rows.new_empty(self.rows.shape[1], self.classes)
        return Pairs(like, penalised=self.penalised)

    def __call__(self, weight: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss in nats and its gradient (D + 1, K), in the rows' dtype."""
        self.evaluations += 1
        gradient, loss = torch.zeros_like(weight), 0.0
        spread = torch.zeros_like(weight[0])
        for rows, labels in self._blocks():
            scores = rows @ weight
            scores.sub_(scores.gather(1, labels))
            largest = scores.amax(1, keepdim=True)  # 0 or more: the true class's is 0
            scores.sub_(largest).exp_().scatter_(1, labels, 0.0)
            others, own = scores.sum(1, keepdim=True), (-largest).exp_()
            total = own + others
            losses = largest + torch.where(largest > 0, total.log(), others.log1p())
            loss += float(losses.double().sum())
            # The true class's probability minus one, without the cancellation.
            error = scores.scatter_(1, labels, -others).div_(total)
            gradient.addmm_(rows.T, error)
            spread += error.abs().sum(0) - error.square().sum(0)  # p (1 - p) of both kinds
        self._spread = spread / len(self.rows)
        return loss / len(self.rows), self._balanced(gradient)

    def expected(self) -> Tensor:
        """Return roughly the Hessian's diagonal where the loss was last asked for, (D + 1, K).

        It is each class's mean p (1 - p) times each feature's variance, as if the two were
        independent; Boehning's bound has a half in place of the former.
        """
        smallest = torch.finfo(torch.float32).eps ** 2
        return self.variance * self._spread.to(self.variance).clamp(smallest, 0.5)

    def curvature(self, weight: Tensor, step: Tensor) -> Tensor:
        """Return the Hessian of the mean loss at ``weight`` times ``step``, both (D + 1, K)."""
        self.evaluations += 1
        product = torch.zeros_like(step)
        for rows, labels in self._blocks():
            likely, change = (rows @ weight).softmax(1), rows @ step
            change.sub_(change.gather(1, labels))  # as for the gradient: no cancellation
            change.sub_((likely * change).sum(1, keepdim=True)).mul_(likely)
            product.addmm_(rows.T, change)
        return self._balanced(product)

    def _balanced(self, total: Tensor) -> Tensor:
        """Return the mean over rows of a sum, without what rounding adds to all biases alike.

        Nothing holds a shift of all biases back: a step along it would be boundless.
        """
        total[-1] -= total[-1].mean()
        return total.div_(len(self.rows))

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = max(1, (_BLOCK_CUDA if self.rows.is_cuda else _BLOCK) // self.classes)
        return zip(self.rows.split(size), self.labels.split(size), strict=True)


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
        self._pairs = problem.pairs()
        self._first = problem.prior()
        self._slopes: deque[float] = deque(maxlen=5)
        """Of the last steps."""
        self._rate = 0.5
        """By which the slopes shrank per step, the last time that it was seen."""
        self._doubt = 1.0
        """By how much L-BFGS takes the rest for smaller than it is, with a margin of 2."""

    def begin(self, weight: Tensor) -> None:
        """Start the first solution from a (D + 1, K) weight."""
        self._first = weight

    def solve(self, c: float) -> tuple[Tensor, float, bool, int]:
        """Return the weight (D + 1, K), the penalised mean loss, whether found, evaluations."""
        before, decay = self._problem.evaluations, 1.0 / (c * len(self._problem.rows))
        point = self._start(c, decay)
        converged = False
        for dtype in (torch.float32, torch.float64):
            if dtype == torch.float64:
                self._to_double()
                weight = point.weight.double()
                point = _Point(weight, *self._problem(weight))
            point, converged = self._descend(point, decay)
            if converged or self._problem.rows.dtype == torch.float64:
                break
        self._solved = [*self._solved[-2:], (c, point)]
        value = point.value(decay, self._problem.penalised)
        return point.weight, value, converged, self._problem.evaluations - before

    def _to_double(self) -> None:
        """Go on in float64, where float32's rounding hides the way down."""
        self._problem.to_double()
        self._solved = [
            (c, _Point(p.weight.double(), p.loss, p.gradient.double())) for c, p in self._solved
        ]
        self._pairs = self._problem.pairs()

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
        for number in range(_MOST_STEPS):
            if number % _REFRESH == 0:
                self._pairs.set_penalty(decay, self._problem.expected())
            step = self._pairs.direction(full)
            slope = dot(full, step)
            if not slope > 0:  # rounding: the pairs no longer describe a convex function
                self._pairs.clear()
                step = self._pairs.direction(full)
                slope = dot(full, step)
            enough = self._tolerance * point.value(decay, penalised)
            if (left := self._doubt * self._left(slope)) <= enough:
                if self._tolerance > _COARSE or slope == 0.0:  # no gradient is left
                    return point, True
                # Slow progress looks like an end. Newton's step tells how far the end is.
                self._pairs.set_penalty(decay, self._problem.expected())
                step = self._newton(point.weight, full, decay)
                slope = dot(full, step)
                self._doubt = min(max(1.0, self._doubt * slope / left), _MOST_DOUBT)
                if 0.5 * slope <= enough:
                    return point, True
            after, gradient = self._search(point, step, slope, decay)
            self._slopes.append(slope)
            self._pairs.add(after.weight - point.weight, after.gradient - point.gradient, gradient)
            point, full = after, gradient
        return point, False

    def _newton(self, weight: Tensor, gradient: Tensor, decay: float) -> Tensor:
        """Return the inverse Hessian times the gradient, by preconditioned conjugate gradients.

        Ends when the last steps added little to what is promised (Strakos and Tichy, Electronic
        Transactions on Numerical Analysis 13, 2002): half the slope is then the way to the optimum.
        """
        penalised = self._problem.penalised
        found, rest = torch.zeros_like(weight), gradient.clone()
        scaled = self._pairs.inverse(rest)
        along, size = scaled.clone(), dot(rest, scaled)
        # What is left below rounding has no direction, and its squares underflow.
        smallest = size * torch.finfo(rest.dtype).eps ** 2
        added: list[float] = []
        for _ in range(_MOST_STEPS):
            curved = self._problem.curvature(weight, along) + decay * penalised * along
            width = dot(along, curved)
            if not (width > 0 and size > smallest):
                break
            length = size / width
            found.add_(along, alpha=length)
            rest.sub_(curved, alpha=length)
            added.append(length * size)
            if len(added) > _DELAY and sum(added[-_DELAY:]) < 0.05 * sum(added):
                break
            scaled = self._pairs.inverse(rest)
            before, size = size, dot(rest, scaled)
            along = scaled.add_(along, alpha=size / before)
        return found

    def _left(self, slope: float) -> float:
        """Return how far above the optimum a point is, estimated from the slope of its step.

        Half the slope is what the quadratic model promises. Where the model is poor the slopes
        shrink slowly, by r per step: then it takes all of the series, 1 / (1 - r) times that.
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
            there = dot(gradient, step)  # minus the slope at the new point
            if there < -0.5 * slope:
                length *= max(0.1, slope / (slope - there))
            elif there > 0.9 * slope and length < 8:
                length *= 3.0
            else:
                break
        return after, gradient
