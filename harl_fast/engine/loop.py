"""The epochs of any training, and below them its steps: what happens when, in order."""

from __future__ import annotations

import contextlib
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from harl_fast import collectives
from harl_fast.data.loader import Batch
from harl_fast.engine import deepspeed as ds
from harl_fast.engine.checkpoint.format import last_before
from harl_fast.engine.checkpoint.writer import Saver
from harl_fast.engine.machine import needing_all_ranks
from harl_fast.engine.monitor.metrics import Meter
from harl_fast.engine.monitor.nonfinite import NonfiniteLog
from harl_fast.engine.monitoring import Monitor
from harl_fast.engine.snapshot import collect_state, record_of
from harl_fast.engine.state import LoopState
from harl_fast.engine.stop import StopAction, StopSignal, TimeLimit
from harl_fast.engine.transfer import Transfer
from harl_fast.errors import HarlError
from harl_fast.model.norm import FiniteStatistics
from harl_fast.optim.lars import LARS
from harl_fast.runfiles import RunFolder

UNSAVED = 2
"""Exit code of a run whose last checkpoint could not be written."""
INTERRUPTED = 130


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    code: int
    """Exit code; the same on all ranks."""
    step: int
    done: bool
    """Whether it came to its end, rather than saving and leaving before."""
    reason: str


class Loop:
    """A run from a step to its end, with logs, checkpoints and a clean stop on a signal.

    run_id: noted in its checkpoints. time_limit_s: of the process's age, at which it must have
    saved and left; None for none. stop: signals received so far; by default they are watched while
    `run` runs. still_held: on rank 0, whether the folder is still this run's, asked at each save.
    """

    def __init__(
        self,
        state: LoopState,
        folder: RunFolder,
        *,
        stepper: Stepping,
        monitor: Monitor,
        run_id: str = "",
        time_limit_s: float | None = None,
        stop: StopSignal | None = None,
        still_held: Callable[[], bool] = lambda: True,
    ) -> None:
        self.state: LoopState = state
        self.folder, self.stepper, self.monitor = folder, stepper, monitor
        self.whole: RunFolder | None = None
        """Of the whole job, where this run is one of several."""
        self.sinks = monitor.sinks
        self._run_id, self._still_held = run_id, still_held
        self.result: RunResult | None = None
        self.stop = StopSignal() if stop is None else stop
        self._listening = self.stop if stop is None else contextlib.nullcontext()
        log = state.config.log
        self._saver: Saver | None = None
        if state.machine.rank == 0:
            self._saver = Saver(
                folder.checkpoints,
                keep_last=log.keep_last,
                keep_every_epochs=log.keep_every_epochs,
                warn=self.sinks.warn,
            )
        # Each network and the optimizer's state, fp32.
        numbers = [p.numel() for network in state.networks.values() for p in network.parameters()]
        moved = [p.numel() for p in state.module.parameters()]
        self._limit = TimeLimit(time_limit_s, state_bytes=4 * (sum(numbers) + sum(moved)))
        step = stepper.step
        self._saved, self._saved_s = step if step else -1, time.monotonic()

    def run(self) -> int:
        """Train to the last epoch; return the exit code, see `result`.

        0 at the end, at the time limit and after what `StopSignal` says; 130 after Ctrl-C; 2 if the
        last checkpoint could not be written. Raises HarlError after too many steps without effect,
        and if the run folder is no longer this run's.
        """
        schedule, action = self.state.schedule, StopAction.CONTINUE
        saving = contextlib.nullcontext() if self._saver is None else self._saver
        with saving, self.sinks, self._listening, needing_all_ranks(self.state.machine):
            self.monitor.introduce()
            if not any(map(schedule.lr, range(schedule.total))):
                self.sinks.warn(
                    "warning: the learning rate is 0 all through this run, whose only step is the "
                    "first of its warm-up: no weight will move. Train for more steps, or set "
                    "warmup_epochs to 0"
                )
            for epoch in range(self.stepper.step // schedule.steps_per_epoch, schedule.epochs):
                action = self._epoch(epoch)
                if action >= StopAction.LEAVE:
                    break
            self.result = self._finish(action)
        return self.result.code

    def _epoch(self, epoch: int) -> StopAction:
        """Train to the epoch's end, or to where the ranks agree to leave; return what they do."""
        state, stepper, per_epoch = self.state, self.stepper, self.state.schedule.steps_per_epoch
        first = stepper.step - epoch * per_epoch
        loader = state.loader
        loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "step": first})
        self._prepare_epoch(epoch)
        batches = stepper.meter.timed(state.loader)
        last = min(per_epoch, state.schedule.total - epoch * per_epoch)  # the run may end within it
        for _ in range(first, last):
            micro_batches = itertools.islice(batches, state.engine_config.batches.accumulation)
            stepper.advance(micro_batches, epoch=epoch)
            if self.monitor.step(stepper.step, epoch=epoch):
                self._check_skipped()
            action = self._agree()
            if action >= StopAction.LEAVE:
                state.loader.close()
                return action
            if action == StopAction.SAVE:
                self._save()
        if last < per_epoch:
            state.loader.close()
        # This also lets the loader end its epoch and move its position to the next.
        elif next(batches, None) is not None:
            raise RuntimeError("the loader gave more batches than its epoch has")
        if (epoch + 1) % state.config.log.checkpoint_epochs == 0:
            self._save()
        self.monitor.epoch(epoch + 1, stopping=lambda: self.stop.number > 0)
        return StopAction.CONTINUE

    def _prepare_epoch(self, epoch: int) -> None:
        """Do what an epoch, from 0, needs before its first batch."""

    def _agree(self) -> StopAction:
        """Return what all ranks do after this step; all must call it."""
        if self.state.machine.rank == 0:
            self.stop.look(*(each.stop for each in (self.folder, self.whole) if each))
        action = self.stop.action
        if self.state.machine.rank == 0:  # one clock decides
            period_s = 60.0 * self.state.config.log.checkpoint_minutes
            if period_s and time.monotonic() - self._saved_s >= period_s:
                action = max(action, StopAction.SAVE)
            if self._limit.reached():
                action = max(action, StopAction.LEAVE)
        return StopAction(collectives.max_over_ranks(action))

    def _check_skipped(self) -> None:
        """Report steps without effect, and raise HarlError after too many of them in a row."""
        log, folder = self.stepper.nonfinite, self.folder
        self.sinks.skipped(log.drain())
        if log.streak < self.state.config.log.max_skipped:
            return
        if self._saver is not None:
            self._saver.wait()
        good = last_before(folder.checkpoints, step=log.first - 1)
        name = f"the checkpoint before them is {good}" if good else "there is no checkpoint before"
        raise HarlError(
            f"{folder.path}: {log.streak} steps in a row, from {log.first} on, had a loss or "
            f"gradient that is not finite and changed nothing; {name}. Look at the samples in "
            f"{folder.skipped}; start a new run with {self.state.gentler}"
        )

    def _save(self) -> None:
        """Begin to write a checkpoint unless this step has one; all ranks must call it."""
        step = self.stepper.step
        if collectives.any_rank(not self._still_held()):
            self.sinks.files.close()
            raise HarlError(
                f"{self.folder.path} is no longer this run's: while it trained, the folder was "
                f"deleted or moved, or its lock deleted or taken over. The run stops at step "
                f"{step} and has not saved it; bring the folder back and continue with --resume, "
                f"or start again in a new one"
            )
        if step == self._saved:
            return
        self._check_skipped()
        self.sinks.state("saving")
        tensors = collect_state(self.state)
        if self._saver is not None:
            skipped = int(self.stepper.skipped)
            record = record_of(self.state, step=step, skipped=skipped, run_id=self._run_id)
            # While steps have no effect, none is deleted: the last one from before them is needed.
            self._saver.save(tensors, record, keep_all=self.stepper.nonfinite.streak > 0)
            if self._saver.took_s:
                self._limit.saved(self._saver.took_s)
        self._saved, self._saved_s = step, time.monotonic()

    def _save_surely(self) -> bool:
        """Save and return whether it is on disk; a write that failed is tried once more."""
        for _ in range(2):
            self._save()
            if not collectives.any_rank(self._saver is not None and not self._saver.wait()):
                return True
            self._saved = -1
        return False

    def _finish(self, action: StopAction) -> RunResult:
        """Write the last checkpoint, and say how the run ended."""
        schedule, step = self.state.schedule, self.stepper.step
        written = self._save_surely()
        done = step == schedule.total
        if done:
            reason = "done"
            text = f"done: {schedule.epochs} epochs, {schedule.total} steps; "
            text += f"weights: {self.folder.checkpoints}"
        else:
            late = action == StopAction.LEAVE and not self.stop.number and self._limit.passed
            reason = self.stop.reason or ("time limit" if late else "another rank's signal")
            name = reason.replace("SIGINT", "Ctrl-C")
            text = f"stopped by {name} at step {step}; --resume continues there"
        code = INTERRUPTED if action == StopAction.INTERRUPT and not done else 0
        if written:
            self.sinks.state("finished" if done else "preempted", reason="" if done else reason)
        else:
            self.sinks.state("failed", reason=f"{reason}, but its last checkpoint was not written")
            code, text = UNSAVED, f"{text}. ITS LAST CHECKPOINT WAS NOT WRITTEN: see above"
        if 0 < step == int(self.stepper.skipped):
            text += f". NO STEP HAD ANY EFFECT: none was finite, see {self.folder.skipped}"
        self.sinks.warn(text)
        return RunResult(code=code, step=step, done=done, reason=reason)


class Stepping(ABC):
    """Runs a step over its micro batches and records metrics; subclasses define the loss."""

    def __init__(self, state: LoopState, *, step: int = 0, skipped: int = 0) -> None:
        self.state: LoopState = state
        self.step = step
        """Optimizer steps done, those without effect included: the schedules' clock."""
        self.meter = Meter(state.device)
        self.skipped = torch.full((), skipped, dtype=torch.int64, device=state.device)
        """Steps without effect, for non-finite gradients; on the device."""
        self.nonfinite = NonfiniteLog(
            lowest_scale=None if state.scale is None else state.scale.lowest
        )
        self._finite = torch.ones((), dtype=torch.bool, device=state.device)
        self._statistics = FiniteStatistics(*state.networks.values())
        self._transfer = Transfer(state.device)

    @abstractmethod
    def _loss(self, batch: Batch, *, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a micro batch's loss by the engine's forward pass, and the figures to log."""

    def _views(self, batch: Batch, *, epoch: int) -> list[Tensor]:
        """Return the batch's views on the device, coloured and normalised.

        Ask for copies of its cells before: the loader takes it that there are none to follow.
        """
        colour = self.state.photometric
        views = self._transfer(batch.views, asked=self.state.loader.copied)
        return views if colour is None else colour.batch(views, ids=batch.ids, epoch=epoch)

    def _moved(self, applied: Tensor) -> None:  # noqa: B027  # not all trainings need it
        """Do what follows a step. applied: () bool, whether it had an effect."""

    def advance(self, batches: Iterable[Batch], *, epoch: int) -> None:
        """Do one step on this rank's micro batches of a global batch."""
        state = self.state
        engine, optimizer, scale = state.engine, state.optimizer, state.scale
        lars = optimizer if isinstance(optimizer, LARS) else None
        lr = state.schedule.lr(self.step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_mult", 1.0)
        if lars:
            lars.begin_step()
        ids = []
        for batch in batches:
            ids.append(batch.ids)
            loss, figures = self._loss(batch, epoch=epoch)
            self.meter.add({"loss": loss, **figures})
            engine.backward(loss if scale is None else loss * scale.factor)
            if engine.is_gradient_accumulation_boundary():
                self._check_gradients()
            engine.step()
        finite = lars.applied if lars else self._finite
        # False where ZeRO itself found an overflow, which it looks for only if it clips.
        applied: Tensor = finite & engine.was_step_applied()
        self._moved(applied)
        self._statistics.restore()
        factor = None if scale is None else scale.factor
        self.nonfinite.add(self.step + 1, ids=ids, applied=applied, scale=factor)
        if scale is not None:
            scale.update(applied)
        self.skipped += ~applied
        figures = {"skipped": ~applied}
        if lars:
            figures["grad_norm"] = lars.grad_norm
        if scale is not None:
            figures["loss_scale"] = scale.factor
        self.meter.add(figures)
        self.step += 1

    def _check_gradients(self) -> None:
        """Tell the optimizer, on the device, whether the whole gradient is finite; meter its norm.

        Under ZeRO, `optimizer.step` runs once per parameter group: check all gradients first, or
        early groups move before a later NaN is seen. LARS at stage 0 is called once and takes all
        norms itself.
        """
        optimizer, engine, scale = self.state.optimizer, self.state.engine, self.state.scale
        if isinstance(optimizer, LARS) and engine.zero_optimization_stage() == 0:
            return
        norm = ds.gradient_norm(engine)
        self._finite = torch.isfinite(norm)
        if isinstance(optimizer, LARS):
            optimizer.applied = optimizer.applied & self._finite
            return
        # torch's own name; its fused SGD and AdamW then skip without asking the host.
        optimizer.found_inf = (~self._finite).float()  # type: ignore[attr-defined]
        self.meter.add({"grad_norm": norm if scale is None else norm / scale.factor})
