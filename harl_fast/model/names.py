"""What a load of weights matched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Receipt:
    """What a load matched: ``318/318 tensors, torchvision names, runs/x step 3750``."""

    matched: int
    """Tensors of the backbone that were found."""
    total: int
    """Tensors that the backbone has."""
    naming: str
    """Whose names they had, such as "torchvision names"."""
    source: str
    """Where they are from: a run and its step, or a file."""

    def __str__(self) -> str:
        return f"{self.matched}/{self.total} tensors, {self.naming}, {self.source}"
