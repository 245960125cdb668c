"""Damaged samples met at run time: refused by name, or counted and replaced, never passed on."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from harl_fast.data.container.manifest import names_path
from harl_fast.data.reader import OpenContainer
from harl_fast.data.views.sample import STATUS_TEXT
from harl_fast.errors import DataError

Policy = Literal["raise", "replace"]
Check = Literal["checksum", "none"]

LARGEST_SHARE = 0.01
"""More damaged samples than this share of the data set (but at least `ALWAYS_ALLOWED`) end a run:
that is no stray bad byte but a broken file."""
ALWAYS_ALLOWED = 10
LISTED = 100
"""Damaged samples kept by name."""

_log = logging.getLogger(__name__)


@functools.cache  # said once, however many loaders read the container
def warn_unchecked(path: Path, which: str) -> None:
    """Warn that a container has no sums that are compared as samples are read.

    Older ones have none, or CRC-32, which would take too long.
    """
    _log.warning(
        "%s has %s checksums of its samples: bytes that change in storage can go unnoticed while "
        "it is read. `python -m preprocess.verify --deep` looks for them; containers that `make "
        "beton` writes now are checked as they are read",
        path,
        which,
    )


@dataclass(frozen=True)
class DamagedSample:
    """One damaged sample: its id, its source path, what is wrong."""

    id: int
    name: str
    reason: str


class Damage:
    """What a loader does about damaged samples, and those it has met so far.

    With "replace", sample i is replaced by the first sound one of i + 1, i + 2, ... (modulo the
    number of samples). The replacement is delivered exactly as if the order had named it: its own
    id, label and random streams. Which sample replaces which therefore follows from the container
    alone, whatever batch, threads, ranks and resumption.
    """

    def __init__(self, container: OpenContainer, *, policy: Policy) -> None:
        self.policy = policy
        self.first: list[DamagedSample] = []
        """The first `LISTED` of them, in the order met."""
        self._container, self._samples = container, container.manifest.count
        self._reasons: dict[int, str] = {}
        self._known: dict[int, int] = {}  # damaged: its replacement

    @property
    def count(self) -> int:
        """Different damaged samples met."""
        return len(self._reasons)

    @property
    def limit(self) -> int:
        """How many damaged samples are tolerated before an error."""
        return max(ALWAYS_ALLOWED, int(LARGEST_SHARE * self._samples))

    def substitute(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return a copy of the ids with the damaged ones known so far replaced."""
        wanted = np.array(samples, np.int64)
        for row in np.flatnonzero(np.isin(wanted, list(self._known))) if self._known else ():
            wanted[row] = self._known[int(wanted[row])]
        return wanted

    def met(self, sample: int, status: int) -> None:
        """Record a damaged sample; raise DataError if it, or their number, is not tolerated."""
        reason, name = STATUS_TEXT[status], self._name(sample)
        path = self._container.file_of(sample)[0]
        if self.policy == "raise":
            raise DataError(
                f"{path}: sample {sample} ({name}): {reason}. The container is damaged: write "
                f"it again with `make beton`; in training, data.damaged=replace goes on without it"
            )
        if sample in self._reasons:
            return
        self._reasons[sample] = reason
        if len(self.first) < LISTED:
            self.first.append(DamagedSample(sample, name, reason))
        _log.warning("%s: sample %d (%s): %s; it is replaced", path, sample, name, reason)
        if self.count > self.limit:
            raise DataError(
                f"{self._container.path}: {self.count} damaged samples met, more than the "
                f"{self.limit} that are replaced (the last was sample {sample}, {name}: {reason}). "
                f"`python -m preprocess.verify --deep {self._container.path}` lists them all; "
                f"write the container again with `make beton`"
            )

    def _name(self, sample: int) -> str:
        try:
            return self._container.name_of(sample)
        except (DataError, OSError, UnicodeDecodeError):  # the damage is what must be told
            return f"its name is not in {names_path(self._container.file_of(sample)[0]).name}"

    def candidate(self, sample: int) -> int:
        """Return the next sample after ``sample`` not known to be damaged; DataError if none is."""
        for step in range(1, self._samples):
            other = (sample + step) % self._samples
            if other not in self._reasons:
                return other
        raise DataError(f"{self._container.path}: all {self._samples} samples are damaged")

    def replaced(self, sample: int, by: int) -> None:
        """Remember the sound replacement of a damaged sample."""
        self._known[sample] = by
