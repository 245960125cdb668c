"""The loss: which regions are matched (`LOSS_TERMS`), how its terms add up (`total_loss`), and
below what each of them measures.

`HARL.forward` (harl.py) gives it predictions and projections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from harl_fast.config import LossConfig
from harl_fast.errors import ConfigError, nearest
from harl_fast.model.precision import widened, without_autocast

_NO_CANDIDATE = -1e9
"""A logit that no softmax sees; infinite ones would make gradients of rows without candidates NaN.
"""
_VARIANCE_FLOOR = 1e-4
"""Added under the root, whose slope has no bound at 0 (VICReg's code)."""
_COVARIANCE_SHARE = 1.0 / 25.0
COMPARING = ("contrast", "spread")
"""Terms that compare the images of a micro batch, each weighted by the key of its name."""


class LossTerm(NamedTuple):
    """A region of the views that is matched; reported as "loss/<name>"."""

    region: Callable[[Tensor], Tensor] | None
    """Weights of the region's cells (B, h, w) in [0, 1] from those of the foreground's; None: the
    whole map, unweighted."""
    weight: Callable[[LossConfig, float, float], float] | None = None
    """The term's weight, from the section, alpha and beta; a term without one takes its weight from
    ``loss.extra``."""


def _whole(loss: LossConfig, alpha: float, beta: float) -> float:
    return {"byol": 1.0, "f_loss": 0.0, "f_loss+b_loss": 0.0}.get(loss.type, beta)


def _foreground(loss: LossConfig, alpha: float, beta: float) -> float:
    return (1.0 - _whole(loss, alpha, beta)) * (alpha if "b_loss" in loss.type else 1.0)


def _background(loss: LossConfig, alpha: float, beta: float) -> float:
    return (1.0 - _whole(loss, alpha, beta)) * (1.0 - alpha if "b_loss" in loss.type else 0.0)


LOSS_TERMS = {
    "whole": LossTerm(region=None, weight=_whole),
    "fg": LossTerm(region=lambda foreground: foreground, weight=_foreground),
    "bg": LossTerm(region=lambda foreground: 1.0 - foreground, weight=_background),
}
"""All terms by name; the loss, its weights and the reports go through them in this order."""


def term_weights(loss: LossConfig, *, alpha: float, beta: float) -> dict[str, float]:
    """Return the weight of each term; those of "whole", "fg" and "bg" sum to 1.

    alpha: foreground's share against background. beta: whole image's share against the regions.
    As the released PyTorch code of HARL (Tran et al., Sensors 22(14) 5169, 2022) combines them.
    Raises ConfigError if ``loss.extra`` names a term that there is not, or that type has already.
    """
    free = [name for name, term in LOSS_TERMS.items() if term.weight is None]
    for name in loss.extra:
        if name not in free:
            raise ConfigError(
                f"loss.extra.{name}: no term of that name takes a weight there; those that do: "
                f"{', '.join(free) or 'none yet'}{nearest(name, free)}"
            )
    return {
        name: loss.extra.get(name, 0.0) if term.weight is None else term.weight(loss, alpha, beta)
        for name, term in LOSS_TERMS.items()
    }


def total_loss(
    p: Tensor,
    z: Tensor,
    q: Tensor,
    *,
    usable: Tensor,
    weights: Mapping[str, float],
    loss: LossConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss, and each of its terms before its weight, all 0-d and float32 or wider.

    p: (V, R, B, D) predictions and q: (V, R, B, D) projections of the online network. z: (T, R, B,
    D) projections of the target network. usable: (V, R, B) bool. weights: of the R regions' terms,
    in their order, see `term_weights`. Beside these, if the section gives them weight, there are
    "contrast", `contrast` summed over the regions by their weights, and "spread", twice the mean of
    `spread_penalty` over views and regions: as large for any number of views.
    """
    terms = {
        term: matched_distance(p[:, i], z[:, i], usable=usable[:, i])
        for i, term in enumerate(weights)
    }
    if loss.contrast:
        each = [
            weight * contrast(p[:, i], z[:, i], temperature=loss.temperature, usable=usable[:, i])
            for i, weight in enumerate(weights.values())
        ]
        terms["contrast"] = torch.stack(each).sum()
    if loss.spread:
        regional = zip(q.flatten(0, 1), usable.flatten(0, 1), strict=True)
        each = [spread_penalty(rows, usable=one) for rows, one in regional]
        terms["spread"] = torch.stack(each).mean() * 2.0
    weights = {**weights, **{name: getattr(loss, name) for name in COMPARING}}
    return torch.stack([weights[term] * value for term, value in terms.items()]).sum(), terms


def region_distance(p: Tensor, z: Tensor) -> Tensor:
    """Return 2 - 2 cos(p, z) per row, in [0, 4] and float32 or wider; no gradient reaches ``z``.

    p: (B, D) predictions of the online network. z: (B, D) projections of the target network.
    BYOL, equation 2.
    """
    with without_autocast(p):
        p, z = _unit(p), _unit(z.detach())
        return 2.0 - 2.0 * (p * z).sum(1)


def _unit(rows: Tensor) -> Tensor:
    """Return (B, D) rows at length 1, float32 or wider."""
    # BYOL's code floors the squared norm at 1e-12, hence the norm at 1e-6.
    return functional.normalize(widened(rows), dim=1, eps=1e-6)


def view_pairs(views: int, targets: int) -> list[tuple[int, int]]:
    """Return the numbers of the views that are matched, the online and the target network's.

    Each of all views is matched with each other one of the first ``targets``, which are those that
    the target network sees.
    """
    return [(one, other) for one in range(views) for other in range(targets) if one != other]


def over_pairs(
    measure: Callable[[Tensor, Tensor, Tensor], Tensor], p: Tensor, z: Tensor, *, usable: Tensor
) -> Tensor:
    """Return twice the mean over all pairs of views of what is measured, over the batch too, 0-d.

    Of two views it is BYOL's sum of both directions, and of more views as large. measure: of a
    pair's predictions (B, D), projections (B, D) and rows that count (B,). p: (V, B, D). z: (T, B,
    D) of the first T views. usable: (V, B) bool, rows whose region has area; they count in a pair
    if they do in both of its views.
    """
    pairs = view_pairs(len(p), len(z))
    each = [measure(p[i], z[j], usable[i] & usable[j]) for i, j in pairs]
    return (torch.stack(each).sum(0) * (2.0 / len(pairs))).mean()


def matched_distance(p: Tensor, z: Tensor, *, usable: Tensor) -> Tensor:
    """Return the distance of a region over all pairs of views, see `over_pairs`, 0-d.

    Rows that do not count add zero and the divisor stays B: the mean of equal parts of a batch is
    the value of the whole batch, however the parts' masks fell.
    """
    return over_pairs(lambda p, z, counts: region_distance(p, z) * counts, p, z, usable=usable)


def contrast(p: Tensor, z: Tensor, *, temperature: float, usable: Tensor) -> Tensor:
    """Return InfoNCE over all pairs of views, see `over_pairs`, 0-d.

    A prediction of one view is classified among the target's projections of the other view's batch
    by cosine over temperature; its own is right (Chen, Xie, He: An empirical study of training
    self-supervised vision transformers, ICCV 2021, equation 1, without its factor). Rows that do
    not count are nobody's candidates and add zero; the divisor stays B.
    """

    def missed(p: Tensor, z: Tensor, counts: Tensor) -> Tensor:
        with without_autocast(p):
            logits = _unit(p) @ _unit(z.detach()).T / temperature
            logits = logits.masked_fill(~(counts[:, None] & counts), _NO_CANDIDATE)
            own = torch.arange(len(p), device=p.device)
            return (functional.cross_entropy(logits, own, reduction="none") * counts).mean()

    return over_pairs(missed, p, z, usable=usable)


def spread_penalty(q: Tensor, *, usable: Tensor | None = None) -> Tensor:
    """Return how far projections are from spreading over all D dimensions, 0-d, 0 at best.

    q: (B, D) projections of the online network. usable: (B,) bool, rows that count; with fewer
    than 2 the result is 0. It is mean_d max(0, 1 - s_d) + 0.04 / D * sum_(d != e) C_de^2 with the
    batch's deviations s and covariances C: the variance and covariance terms of VICReg (Bardes,
    Ponce, LeCun, ICLR 2022, equations 1 to 4) in the proportion 25 : 1 of that paper.
    """
    with without_autocast(q):
        q = widened(q)
        rows = q.new_ones(len(q), 1) if usable is None else usable.to(q.dtype)[:, None]
        count = rows.sum()
        centred = (q - (q * rows).sum(0) / count.clamp(min=1.0)) * rows
        covariance = centred.T @ centred / (count - 1.0).clamp(min=1.0)
        variance = covariance.diagonal()
        deviation = (variance + _VARIANCE_FLOOR).sqrt()
        apart = functional.relu(1.0 - deviation).mean()
        alike = (covariance.square().sum() - variance.square().sum()) / q.shape[1]
        return (apart + _COVARIANCE_SHARE * alike) * (count > 1.0)
