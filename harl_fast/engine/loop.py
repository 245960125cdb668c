"""Pretraining: the epochs, and what happens between their steps."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from harl_fast.engine.checkpoint.format import last_before
from harl_fast.engine.checkpoint.writer import Saver
from harl_fast.engine.clock import TimeLimit
from harl_fast.engine.deepspeed import any_rank, max_over_ranks
from harl_fast.engine.monitor.watch import Sheet, Watch, open_reporter
from harl_fast.engine.runfolder import RunFolder
from harl_fast.engine.state import Parts, collect_state
from harl_fast.engine.step import Stepper
from harl_fast.engine.stop import StopSignal, Wish
from harl_fast.engine.views import colouring, sizes_text, view_geometry, views_at
from harl_fast.errors import HarlError

UNSAVED = 2
"""Exit code of a run whose last checkpoint could not be written."""
INTERRUPTED = 130


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    code: int
    """Exit code; the same on all ranks."""
    step: int
    done: bool
    """Whether it came to its end, rather than saving and leaving before."""
    reason: str


class Pretraining:
    """A run from a step to its end, with logs, checkpoints and a clean stop on a signal.

    run_id: noted in its checkpoints. time_limit_s: of the process's age, at which it must have
    saved and left; None for none. stop: signals received so far; by default they are watched while
    `run` runs. still_held: on rank 0, whether the folder is still this run's, asked at each save.
    """

    def __init__(
        self,
        parts: Parts,
        folder: RunFolder,
        *,
        step: int = 0,
        skipped: int = 0,
        run_id: str = "",
        quiet: bool = False,
        sheet: Sheet | None = None,
        time_limit_s: float | None = None,
        stop: StopSignal | None = None,
        still_held: Callable[[], bool] = lambda: True,
    ) -> None:
        self.parts, self.folder = parts, folder
        self.stepper = Stepper(parts, step=step, skipped=skipped)
        self.reporter = open_reporter(parts, folder, step=step, quiet=quiet)
        self.watch = Watch(self.stepper, folder, self.reporter, sheet=sheet)
        self._run_id, self._still_held = run_id, still_held
        self.ending: Ending | None = None
        self.stop = StopSignal() if stop is None else stop
        self._listening = self.stop if stop is None else contextlib.nullcontext()
        self._saver: Saver | None = None
        if parts.machine.rank == 0:
            log = parts.config.log
            self._saver = Saver(
                folder.checkpoints,
                keep_last=log.keep_last,
                keep_every_epochs=log.keep_every_epochs,
                say=self.reporter.say,
            )
        state = 12 * sum(parameter.numel() for parameter in parts.harl.parameters())
        self._limit = TimeLimit(time_limit_s, state_bytes=state)
        self._saved, self._saved_s = step if step else -1, time.monotonic()

    def run(self) -> int:
        """Train to the last epoch; return the exit code, see `ending`.

        0 at the end, at the time limit and after what `StopSignal` says; 130 after SIGINT; 2 if the
        last checkpoint could not be written. Raises HarlError after too many steps without effect,
        and if the run folder is no longer this run's.
        """
        course, stepper = self.parts.course, self.stepper
        wish = Wish.GO_ON
        saving = contextlib.nullcontext() if self._saver is None else self._saver
        with saving, self.reporter, self._listening:
            self._introduce()
            self.reporter.state("warming")
            for epoch in range(stepper.step // course.steps_per_epoch, course.epochs):
                wish = self._epoch(epoch)
                if wish >= Wish.LEAVE:
                    break
            self.ending = self._end(wish)
        return self.ending.code

    def _end(self, wish: Wish) -> Ending:
        """Write the last checkpoint, and say how the run ended."""
        course, step = self.parts.course, self.stepper.step
        written = self._save_surely()
        done = step == course.total
        if done:
            reason = "done"
            text = f"done: {course.epochs} epochs, {course.total} steps; "
            text += f"weights: {self.folder.checkpoints}"
            self.reporter.state("finished" if written else "failed")
        else:
            late = wish == Wish.LEAVE and not self.stop.number and self._limit.passed
            reason = self.stop.reason or ("time limit" if late else "another rank's signal")
            text = f"stopped by {reason} at step {step}; --resume continues there"
            self.reporter.state("preempted" if written else "failed", reason=reason)
        code = INTERRUPTED if wish == Wish.INTERRUPT and not done else 0
        if not written:
            code, text = UNSAVED, f"{text}. ITS LAST CHECKPOINT WAS NOT WRITTEN: see above"
        self.reporter.say(text)
        return Ending(code=code, step=step, done=done, reason=reason)

    def _fit_views(self, epoch: int) -> None:
        """Give loader and colours the epoch's view sizes; announce a change."""
        parts = self.parts
        if parts.photometric is not None:
            parts.photometric.policies = views_at(parts.config, epoch=epoch)
        views = view_geometry(parts.config, epoch=epoch)
        if views == list(parts.loader.views):
            return
        seconds = parts.loader.set_views(
            views, colour=colouring(parts.config, parts.device, epoch=epoch)
        )
        again = "; torch.compile will compile again for them" if parts.config.model.compile else ""
        self.reporter.note(
            f"epoch {epoch + 1}: views of {sizes_text(views)} ({seconds:.1f} s){again}"
        )

    def _epoch(self, epoch: int) -> Wish:
        """Train to the epoch's end, or to where the ranks agree to leave; return that wish."""
        parts, stepper, course = self.parts, self.stepper, self.parts.course
        first = stepper.step - epoch * course.steps_per_epoch
        parts.loader.load_state_dict({"seed": parts.config.seed, "epoch": epoch, "step": first})
        self._fit_views(epoch)
        batches = stepper.meter.timed(parts.loader)
        for _ in range(first, course.steps_per_epoch):
            stepper.advance(
                itertools.islice(batches, parts.engine_config.batches.accumulation), epoch=epoch
            )
            if self.watch.step(epoch):
                self._judge()
            wish = self._agree()
            if wish >= Wish.LEAVE:
                parts.loader.close()
                return wish
            if wish == Wish.SAVE:
                self._save()
        if next(batches, None) is not None:
            raise RuntimeError("the loader gave more batches than its epoch has")
        if (epoch + 1) % parts.config.log.checkpoint_epochs == 0:
            self._save()
        self.watch.epoch(epoch + 1, stopping=lambda: self.stop.number > 0)
        return Wish.GO_ON

    def _agree(self) -> Wish:
        """Return what to do after this step: the ranks' largest wish. All must call it."""
        wish = self.stop.wish
        if self.parts.machine.rank == 0:  # one clock decides
            period_s = 60.0 * self.parts.config.log.checkpoint_minutes
            if period_s and time.monotonic() - self._saved_s >= period_s:
                wish = max(wish, Wish.SAVE)
            if self._limit.reached():
                wish = max(wish, Wish.LEAVE)
        return Wish(max_over_ranks(wish))

    def _judge(self) -> None:
        """Tell of steps without effect, and raise HarlError after too many of them in a row."""
        verdicts, folder = self.stepper.verdicts, self.folder
        self.reporter.no_effect(verdicts.look())
        if verdicts.streak < self.parts.config.log.max_skipped:
            return
        if self._saver is not None:
            self._saver.wait()
        good = last_before(folder.checkpoints, step=verdicts.first - 1)
        name = f"the checkpoint before them is {good}" if good else "there is no checkpoint before"
        raise HarlError(
            f"{folder.path}: {verdicts.streak} steps in a row, from {verdicts.first} on, had a "
            f"loss or gradient that is not finite and changed nothing; {name}. Look at the samples "
            f"in {folder.skipped}; start a new run with a lower optim.lr or a longer "
            f"optim.warmup_epochs, from that checkpoint by --init-from if wanted"
        )

    def _save(self) -> None:
        """Begin to write a checkpoint unless this step has one; all ranks must call it."""
        parts, step = self.parts, self.stepper.step
        self._check_folder()
        if step == self._saved:
            return
        self._judge()
        self.reporter.state("saving")
        tensors = collect_state(parts)
        if self._saver is not None:
            epoch, epoch_step = divmod(step, parts.course.steps_per_epoch)
            manifest = parts.loader.manifest
            record = {
                "run_id": self._run_id,
                "step": step,
                "epoch": epoch,
                "epoch_step": epoch_step,
                "skipped": int(self.stepper.skipped),
                "config": parts.config,
                "engine": parts.engine_config.record(),
                "ranks": parts.machine.ranks,
                "loader": {**parts.loader.state_dict(), "epoch": epoch, "step": epoch_step},
                "data": {"count": manifest.count, "beton_sha256": manifest.beton_sha256},
            }
            # While steps have no effect, the checkpoint from before must not make room.
            self._saver.save(tensors, record, keep_all=self.stepper.verdicts.streak > 0)
            if self._saver.took_s:
                self._limit.saved(self._saver.took_s)
        self._saved, self._saved_s = step, time.monotonic()

    def _check_folder(self) -> None:
        """Raise HarlError on all ranks if the folder is not this run's any more."""
        if any_rank(not self._still_held()):
            self.reporter.side.close()
            raise HarlError(
                f"{self.folder.path} is no longer this run's: while it trained, the folder was "
                f"deleted or moved, or its lock deleted or taken over. The run stops at step "
                f"{self.stepper.step} and has not saved it; bring the folder back and continue "
                f"with --resume, or start again in a new one"
            )

    def _save_surely(self) -> bool:
        """Save and return whether it is on disk; a write that failed is tried once more.

        All ranks must call it.
        """
        for _ in range(2):
            self._save()
            if not any_rank(self._saver is not None and not self._saver.wait()):
                return True
            self._saved = -1
        return False

    def _introduce(self) -> None:
        parts, course = self.parts, self.parts.course
        self.reporter.note(
            f"{self.folder.path}: {parts.config.model.arch} on {parts.device.type}, "
            f"{parts.engine_config.precision}, ZeRO stage {parts.engine_config.stage}; "
            f"{parts.engine_config.batches}; {parts.loader.manifest.count:,} images, "
            f"{course.epochs} epochs of {course.steps_per_epoch} steps, "
            f"peak lr {course.lr_peak:.4g}"
        )
        if self.stepper.step:
            self.reporter.note(f"resuming after step {self.stepper.step}")
