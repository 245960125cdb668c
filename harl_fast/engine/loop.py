"""Pretraining: the epochs, and what happens between their steps."""

from __future__ import annotations

import itertools

import torch.distributed as dist

from harl_fast.engine.checkpoint import prune, write_checkpoint
from harl_fast.engine.parts import Parts, collect_state
from harl_fast.engine.report import Reporter
from harl_fast.engine.runfolder import RunFolder
from harl_fast.engine.step import Stepper
from harl_fast.engine.stop import StopSignal
from harl_fast.engine.views import colouring, sizes_text, view_geometry, views_at


class Pretraining:
    """A run from a step to its end, with logs, checkpoints and a clean stop on a signal."""

    def __init__(self, parts: Parts, folder: RunFolder, *, step: int = 0, skipped: int = 0) -> None:
        self.parts, self.folder = parts, folder
        self.stepper = Stepper(parts, step=step, skipped=skipped)
        self.reporter = Reporter(
            folder, epochs=parts.course.epochs, silent=parts.machine.rank > 0, first_step=step
        )
        self._logged = self._saved = step
        self._train_s = 0.0
        self._began = step

    def run(self) -> int:
        """Train to the last epoch; return the exit code, which is 128 + N after signal N."""
        course, stepper = self.parts.course, self.stepper
        with self.reporter, StopSignal() as stop:
            self._introduce()
            for epoch in range(stepper.step // course.steps_per_epoch, course.epochs):
                self._epoch(epoch, stop)
                if stop.agreed:
                    self._save()
                    self.reporter.say(
                        f"stopped by {stop.name} at step {stepper.step}; --resume continues there"
                    )
                    return 128 + stop.number
            self._save()
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
        self.reporter.say(
            f"epoch {epoch + 1}: views of {sizes_text(views)} ({seconds:.1f} s){again}"
        )

    def _epoch(self, epoch: int, stop: StopSignal) -> None:
        parts, stepper, course = self.parts, self.stepper, self.parts.course
        first = stepper.step - epoch * course.steps_per_epoch
        parts.loader.load_state_dict({"seed": parts.config.seed, "epoch": epoch, "step": first})
        self._fit_views(epoch)
        batches = stepper.meter.timed(parts.loader)
        for done in range(first + 1, course.steps_per_epoch + 1):
            stepper.advance(
                itertools.islice(batches, parts.engine_config.batches.accumulation), epoch=epoch
            )
            last = done == course.steps_per_epoch
            if last or stepper.step % parts.config.log.every_steps == 0:
                self._log(epoch)
            if stop.agree():
                parts.loader.close()
                return
        if next(batches, None) is not None:
            raise RuntimeError("the loader gave more batches than its epoch has")
        if (epoch + 1) % parts.config.log.checkpoint_epochs == 0:
            self._save()

    def _log(self, epoch: int) -> None:
        stepper, course = self.stepper, self.parts.course
        figures = stepper.meter.take()
        steps, self._logged = stepper.step - self._logged, stepper.step
        elapsed = figures.pop("elapsed_s")
        self._train_s += elapsed
        per_step = self._train_s / (stepper.step - self._began)
        settings = course.at(stepper.step - 1)
        self.reporter.write(
            {
                "epoch": epoch + 1,
                "step": stepper.step,
                "steps": steps,
                **figures,
                "skipped": round(figures["skipped"] * steps),
                "img_s": steps * self.parts.engine_config.batches.batch_global / elapsed,
                "lr": settings.lr,
                "tau": settings.tau,
                "alpha": settings.alpha,
                "beta": settings.beta,
                "eta_s": per_step * (course.total - stepper.step),
            }
        )

    def _save(self) -> None:
        """Write a checkpoint unless this step has one; all ranks must call it."""
        parts, step = self.parts, self.stepper.step
        if step == self._saved and step > 0:
            return
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
        self.reporter.say(
            f"{self.folder.path}: {parts.config.model.arch} on {parts.device.type}, "
            f"{parts.engine_config.precision}, ZeRO stage {parts.engine_config.stage}; "
            f"{parts.engine_config.batches}; {parts.loader.manifest.count:,} images, "
            f"{course.epochs} epochs of {course.steps_per_epoch} steps, "
            f"peak lr {course.lr_peak:.4g}"
        )
        if self.stepper.step:
            self.reporter.say(f"resuming after step {self.stepper.step}")
