"""What the schedules say at each optimizer step of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from harl_fast.config import RunConfig
from harl_fast.schedules import cosine_tau, scaled_lr, warmup_cosine, weight_schedule


@dataclass(frozen=True)
class StepSettings:
    """The values of one optimizer step."""

    lr: float
    tau: float
    alpha: float
    beta: float


@dataclass(frozen=True)
class LrSchedule:
    """A run's length in steps, and its learning rate as a function of the step alone."""

    epochs: int
    steps_per_epoch: int
    lr_peak: float
    warmup_steps: float

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def lr(self, step: int) -> float:
        """Return the learning rate of the step after ``step`` steps are done."""
        return warmup_cosine(step, total=self.total, warmup=self.warmup_steps, peak=self.lr_peak)

    def figures(self, step: int) -> dict[str, float]:
        """Return what a log record says of that step's settings."""
        return {"lr": self.lr(step)}


@dataclass(frozen=True)
class Schedule(LrSchedule):
    """The same of a pretraining, with its other settings."""

    tau: tuple[float, float]
    """At the first and at the last step."""
    alpha: Callable[[float], float]
    beta: Callable[[float], float]

    @classmethod
    def of(cls, config: RunConfig, *, steps_per_epoch: int, batch_global: int) -> Schedule:
        """Return the schedule that a configuration describes. Raises ConfigError."""
        optim = config.optim
        return cls(
            epochs=config.epochs,
            steps_per_epoch=steps_per_epoch,
            lr_peak=scaled_lr(optim.lr, batch_global=batch_global, rule=optim.lr_scaling),
            warmup_steps=optim.warmup_epochs * steps_per_epoch,
            tau=(config.target.tau_start, config.target.tau_end),
            alpha=weight_schedule(config.loss.alpha),
            beta=weight_schedule(config.loss.beta),
        )

    def at(self, step: int) -> StepSettings:
        """Return the settings of the step after ``step`` steps are done."""
        start, end = self.tau
        return StepSettings(
            lr=self.lr(step),
            tau=cosine_tau(step, total=self.total, start=start, end=end),
            alpha=self.alpha(step / self.total),
            beta=self.beta(step / self.total),
        )

    def figures(self, step: int) -> dict[str, float]:
        """Return what a log record says of that step's settings."""
        settings = self.at(step)
        return {name: getattr(settings, name) for name in ("lr", "tau", "alpha", "beta")}

    def extension_text(self, step: int, *, epochs_before: int) -> str:
        """Say what becomes of a run of ``epochs_before`` that goes on to this one's end."""
        before = replace(self, epochs=epochs_before)
        old, new = before.at(min(step, before.total)), self.at(min(step, self.total))
        return (
            f"epochs {epochs_before} -> {self.epochs}: from step {step} on, learning rate, tau, "
            f"loss weights and view sizes are those that a run of {self.epochs} epochs has there "
            f"(lr {old.lr:.4g} -> {new.lr:.4g}, tau {old.tau:.5f} -> {new.tau:.5f})"
        )
