"""Alarms: a figure of the log that says the run is going wrong, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Supply:
    """How this rank's images come, which decides what helps when they come too slowly."""

    batches_ahead: int = 3
    threads: int = 1
    """Decoding threads."""
    cores: int = 1
    """Cores that this rank may use."""
    store: str = "jpg"
    """The manifest's ``store.kind``."""
    loader_colours: bool = False
    on_gpu: bool = False

    def remedies(self) -> str:
        """Return what to try, the likeliest first, as one sentence."""
        found = []
        if self.threads < self.cores:
            found.append(
                f"raise data.workers (this rank decodes with {self.threads} of its {self.cores} "
                f"cores)"
            )
        if self.on_gpu and self.loader_colours:
            found.append("set data.colour=device (the loader's threads colour now)")
        if self.store not in ("raw", "yuv420"):
            found.append(
                "convert with STORE=yuv420, or STORE=raw (nothing to decode), if that fits the "
                "RAM, or with a smaller MAX_RESOLUTION"
            )
        else:
            found.append("let the container fit the RAM (smaller MAX_RESOLUTION) or use STORE=jpg")
        if self.batches_ahead < 16:
            found.append(
                f"against short stalls, raise data.batches_ahead (now {self.batches_ahead})"
            )
        return "; or ".join(found)


@dataclass(frozen=True)
class Alarm:
    """One kind of trouble."""

    kind: str
    raised: Callable[[Mapping[str, float], Supply], bool]
    """Whether a log record shows it."""
    text: str
    """Message with fields of the record, and {remedies} of the supply."""


ALARMS = (
    Alarm(
        "non-finite",
        # A loss scale that is looking for its height overflows now and then.
        lambda r, s: r["skipped"] > (0.5 * r["steps"] if "loss_scale" in r else 0),
        "{skipped:.0f} of the last {steps:.0f} steps had gradients that are not finite and changed "
        "nothing. Lower optim.lr or lengthen optim.warmup_epochs; under fp16 try bf16",
    ),
    Alarm(
        "collapse",
        lambda r, s: r.get("z_std", 1.0) < 0.1,
        "z_std is {z_std:.3f} (1 is spread out, 0 is one point for all images): the projections "
        "are collapsing. Lower optim.lr, raise target.tau_start, or use a larger batch",
    ),
    Alarm(
        "data-wait",
        # The first batches of an epoch are always waited for; a few steps say nothing else.
        lambda r, s: r["wait_worst"] > 0.2 and r["steps"] > 2 * s.batches_ahead,
        "{wait_worst:.0%} of the time went by waiting for images on the worst rank, {wait:.0%} on "
        "average. To feed the network, {remedies}",
    ),
    Alarm(
        "empty-mask",
        lambda r, s: r.get("empty", 0.0) > 0.5,
        "{empty:.0%} of the pairs have no foreground in one of their views and only feed the "
        "whole-image term. Look at the masks (`make preview`), try another mask method, or raise "
        "the lower end of data.views.*.scale",
    ),
    Alarm(
        "full-mask",
        lambda r, s: r.get("fg", 0.0) > 0.95,
        "the masks cover {fg:.0%} of the views, so foreground is the same as the whole image. Look "
        "at the masks (`make preview`) and try another mask method",
    ),
    Alarm(
        "dead-layer",
        lambda r, s: r["skipped"] == 0 and r.get("trust_min", 1.0) == 0.0,
        "a weight's gradient was exactly 0, so it neither moves nor decays: its layer is dead "
        "(trust/histogram in TensorBoard). Lower optim.lr and start again from a checkpoint before",
    ),
    Alarm(
        "large-step",
        lambda r, s: r.get("update_norm", 0.0) > 0.3 * r.get("weight_norm", float("inf")),
        "one step moved the weights by {update_norm:.3g}, and they are only {weight_norm:.3g} "
        "long. Lower optim.lr (or optim.trust), or lengthen optim.warmup_epochs",
    ),
    Alarm(
        "damaged",
        lambda r, s: r.get("damaged", 0) > 0,
        "{damaged:.0f} damaged samples were replaced by their neighbours so far (named above). "
        "`python -m preprocess.verify --deep` lists them all; write the container again with "
        "`make beton`",
    ),
)


class Health:
    """Remembers which alarms are on, so that each is reported once until it has cleared."""

    def __init__(self, supply: Supply | None = None) -> None:
        self._supply = supply or Supply()
        self.on: set[str] = set()
        """Kinds of the alarms that the last record raised."""

    def check(self, record: Mapping[str, float]) -> list[str]:
        """Return the messages of alarms that this log record newly raises."""
        messages = []
        for alarm in ALARMS:
            raised = alarm.raised(record, self._supply)
            if raised and alarm.kind not in self.on:
                text = alarm.text.format(**record, remedies=self._supply.remedies())
                messages.append(f"warning: {alarm.kind}: {text}")
            (self.on.add if raised else self.on.discard)(alarm.kind)
        return messages
