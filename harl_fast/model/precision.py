"""What stays in float32 when the networks run under autocast."""

from __future__ import annotations

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> torch.autocast:
    """Return a context in which autocast is off on the device of ``like``."""
    return torch.autocast(device_type=like.device.type, enabled=False)


def widened(values: Tensor) -> Tensor:
    """Return half-precision values as float32, and wider ones as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
