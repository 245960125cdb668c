"""Alarms: a figure of the log that says the run is going wrong, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Alarm:
    """One kind of trouble."""

    kind: str
    raised: Callable[[Mapping[str, float]], bool]
    """Whether a log record shows it."""
    text: str
    """Message with fields of the record."""


ALARMS = (
    Alarm(
        "non-finite",
        # A loss scale that is looking for its height overflows now and then.
        lambda r: r["skipped"] > (0.5 * r["steps"] if "loss_scale" in r else 0),
        "{skipped:.0f} of the last {steps:.0f} steps had gradients that are not finite and changed "
        "nothing. Lower optim.lr or lengthen optim.warmup_epochs; under fp16 try bf16",
    ),
    Alarm(
        "collapse",
        lambda r: r["z_std"] < 0.1,
        "z_std is {z_std:.3f} (1 is spread out, 0 is one point for all images): the projections "
        "are collapsing. Lower optim.lr, raise target.tau_start, or use a larger batch",
    ),
    Alarm(
        "data-wait",
        lambda r: r["wait"] > 0.2,
        "{wait:.0%} of the time went by waiting for images. Raise data.workers if cores are idle, "
        "or convert with a smaller stored size (`make beton`)",
    ),
    Alarm(
        "empty-mask",
        lambda r: r["empty"] > 0.5,
        "{empty:.0%} of the pairs have no foreground in one of their views and only feed the "
        "whole-image term. Look at the masks (`make preview`), try another mask method, or raise "
        "the lower end of data.views.*.scale",
    ),
    Alarm(
        "full-mask",
        lambda r: r["fg"] > 0.95,
        "the masks cover {fg:.0%} of the views, so foreground is the same as the whole image. Look "
        "at the masks (`make preview`) and try another mask method",
    ),
)


class Health:
    """Remembers which alarms are on, so that each is told once until it has cleared."""

    def __init__(self, alarms: tuple[Alarm, ...] = ALARMS) -> None:
        self._alarms = alarms
        self._on: set[str] = set()

    def check(self, record: Mapping[str, float]) -> list[str]:
        """Return the messages of alarms that this log record newly raises."""
        messages = []
        for alarm in self._alarms:
            raised = alarm.raised(record)
            if raised and alarm.kind not in self._on:
                messages.append(f"warning: {alarm.kind}: {alarm.text.format(**record)}")
            (self._on.add if raised else self._on.discard)(alarm.kind)
        return messages
