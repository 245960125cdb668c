"""The epoch loop of all trainings: logs, checkpoints and a clean stop on a signal."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from harl_fast import collectives
from harl_fast.engine.checkpoint.format import last_before
from harl_fast.engine.checkpoint.writer import Saver
from harl_fast.engine.machine import needing_all_ranks
from harl_fast.engine.monitoring import Monitor
from harl_fast.engine.snapshot import collect_state, record_of
from harl_fast.engine.state import LoopState
from harl_fast.engine.step import Stepping
from harl_fast.engine.stop import StopAction, StopSignal, TimeLimit
from harl_fast.errors import HarlError
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
            self.stop.look(self.folder.stop)
        action = self.stop.action
        if self.state.machine.rank == 0:  # one clock decides
            period_s = 60.0 * self.state.config.log.checkpoint_minutes
            if period_s and time.monotonic() - self._saved_s >= period_s:
                action = max(action, StopAction.SAVE)
            if self._limit.reached():
                action = max(action, StopAction.LEAVE)
        return StopAction(collectives.max_over_ranks(action))

    def _check_skipped(self) -> None:
        """Tell of steps without effect, and raise HarlError after too many of them in a row."""
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
            self.sinks.state("finished" if written else "failed")
        else:
            late = action == StopAction.LEAVE and not self.stop.number and self._limit.passed
            reason = self.stop.reason or ("time limit" if late else "another rank's signal")
            name = reason.replace("SIGINT", "Ctrl-C")
            text = f"stopped by {name} at step {step}; --resume continues there"
            self.sinks.state("preempted" if written else "failed", reason=reason)
        code = INTERRUPTED if action == StopAction.INTERRUPT and not done else 0
        if not written:
            code, text = UNSAVED, f"{text}. ITS LAST CHECKPOINT WAS NOT WRITTEN: see above"
        if 0 < step == int(self.stepper.skipped):
            text += f". NO STEP HAD ANY EFFECT: none was finite, see {self.folder.skipped}"
        self.sinks.warn(text)
        return RunResult(code=code, step=step, done=done, reason=reason)
