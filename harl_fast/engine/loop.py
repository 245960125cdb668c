"""Pretraining: the epochs, and what happens between their steps."""

from __future__ import annotations

import itertools

import torch.distributed as dist

from harl_fast.engine.checkpoint import prune, write_checkpoint
from harl_fast.engine.parts import Parts, collect_state
from harl_fast.engine.runfolder import RunFolder
from harl_fast.engine.step import Stepper
from harl_fast.engine.stop import StopSignal
from harl_fast.engine.views import colouring, sizes_text, view_geometry, views_at
from harl_fast.engine.watch import Sheet, Watch, open_reporter


class Pretraining:
    """A run from a step to its end, with logs, checkpoints and a clean stop on a signal."""

    def __init__(
        self,
        parts: Parts,
        folder: RunFolder,
        *,
        step: int = 0,
        skipped: int = 0,
        quiet: bool = False,
        sheet: Sheet | None = None,
    ) -> None:
        self.parts, self.folder = parts, folder
        self.stepper = Stepper(parts, step=step, skipped=skipped)
        self.reporter = open_reporter(parts, folder, step=step, quiet=quiet)
        self.watch = Watch(self.stepper, folder, self.reporter, sheet=sheet)
        self._saved = step

    def run(self) -> int:
        """Train to the last epoch; return the exit code, which is 128 + N after signal N."""
        course, stepper = self.parts.course, self.stepper
        with self.reporter, StopSignal() as stop:
            self._introduce()
            self.reporter.state("warming")
            for epoch in range(stepper.step // course.steps_per_epoch, course.epochs):
                self._epoch(epoch, stop)
                if stop.agreed:
                    self._save()
                    self.reporter.state("preempted", reason=stop.name)
                    self.reporter.say(
                        f"stopped by {stop.name} at step {stepper.step}; --resume continues there"
                    )
                    return 128 + stop.number
            self._save()
            self.reporter.state("finished")
            self.reporter.say(
                f"done: {course.epochs} epochs, {course.total} steps; "
                f"weights: {self.folder.checkpoints}"
            )
        return 0

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

    def _epoch(self, epoch: int, stop: StopSignal) -> None:
        parts, stepper, course = self.parts, self.stepper, self.parts.course
        first = stepper.step - epoch * course.steps_per_epoch
        parts.loader.load_state_dict({"seed": parts.config.seed, "epoch": epoch, "step": first})
        self._fit_views(epoch)
        batches = stepper.meter.timed(parts.loader)
        for _ in range(first, course.steps_per_epoch):
            stepper.advance(
                itertools.islice(batches, parts.engine_config.batches.accumulation), epoch=epoch
            )
            self.watch.step(epoch)
            if stop.agree():
                parts.loader.close()
                return
        if next(batches, None) is not None:
            raise RuntimeError("the loader gave more batches than its epoch has")
        if (epoch + 1) % parts.config.log.checkpoint_epochs == 0:
            self._save()
        self.watch.epoch(epoch + 1, stopping=lambda: stop.number > 0)

    def _save(self) -> None:
        """Write a checkpoint unless this step has one; all ranks must call it."""
        parts, step = self.parts, self.stepper.step
        if step == self._saved and step > 0:
            return
        self.reporter.state("saving")
        tensors = collect_state(parts)
        if parts.machine.rank == 0:
            manifest = parts.loader.manifest
            record = {
                "step": step,
                "epoch": step // parts.course.steps_per_epoch,
                "epoch_step": step % parts.course.steps_per_epoch,
                "skipped": int(self.stepper.skipped),
                "config": parts.config,
                "engine": parts.engine_config.record(),
                "data": {"count": manifest.count, "beton_sha256": manifest.beton_sha256},
            }
            write_checkpoint(self.folder.checkpoints, tensors=tensors, record=record)
            log = parts.config.log
            prune(
                self.folder.checkpoints,
                keep_last=log.keep_last,
                keep_every_epochs=log.keep_every_epochs,
            )
        dist.barrier()
        self._saved = step

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
