"""The five loss types, from embeddings."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from harl_fast.errors import ConfigError, nearest
from harl_fast.model.precision import widened, without_autocast

LOSS_TYPES = ("byol", "f_loss", "f_loss+b_loss", "byol+f_loss", "byol+f_loss+b_loss")


def term_weights(loss_type: str, *, alpha: float, beta: float) -> dict[str, float]:
    """Return the weights of the terms "whole", "fg" and "bg"; they sum to 1.

    alpha: foreground's share against background. beta: whole image's share against the regions.
    As the released PyTorch code of HARL (Tran et al., Sensors 22(14) 5169, 2022) combines them.
    """
    if loss_type not in LOSS_TYPES:
        raise ConfigError(
            f"loss type '{loss_type}' is none of {', '.join(LOSS_TYPES)}"
            f"{nearest(loss_type, LOSS_TYPES)}"
        )
    whole = {"byol": 1.0, "f_loss": 0.0, "f_loss+b_loss": 0.0}.get(loss_type, beta)
    fg = alpha if "b_loss" in loss_type else 1.0
    return {"whole": whole, "fg": (1.0 - whole) * fg, "bg": (1.0 - whole) * (1.0 - fg)}


def region_distance(p: Tensor, z: Tensor) -> Tensor:
    """Return 2 - 2 cos(p, z) a row, in [0, 4] and float32 or wider; no gradient reaches ``z``.

    p: (B, D) predictions of the online network. z: (B, D) projections of the target network.
    BYOL, equation 2.
    """
    with without_autocast(p):
        # BYOL's code floors the squared norm at 1e-12, hence the norm at 1e-6.
        p = functional.normalize(widened(p), dim=1, eps=1e-6)
        z = functional.normalize(widened(z.detach()), dim=1, eps=1e-6)
        return 2.0 - 2.0 * (p * z).sum(1)


def symmetric_loss(
    p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, *, usable: Tensor | None = None
) -> Tensor:
    """Return the sum (not the mean) of both directions' distances, averaged over the batch.

    p1, p2, z1, z2: (B, D) of views 1 and 2. usable: (B,) bool, rows that count.
    Rows that do not count add zero and the divisor stays B: the mean of equal parts of a batch is
    the value of the whole batch, however the parts' masks fell.
    """
    distance = region_distance(p1, z2) + region_distance(p2, z1)
    if usable is not None:
        distance = distance * usable
    return distance.mean()
