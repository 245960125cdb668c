"""Pretraining: the step, the epochs, and what happens between them."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterable
from types import FrameType, TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from harl_fast.data.loader import Batch
from harl_fast.engine.checkpoint import prune, write_checkpoint
from harl_fast.engine.ds import any_rank, gradient_norm
from harl_fast.engine.meter import Meter
from harl_fast.engine.parts import Parts, collect_state
from harl_fast.engine.report import Reporter
from harl_fast.engine.runfolder import RunFolder
from harl_fast.engine.views import colouring, sizes_text, view_geometry, views_at
from harl_fast.model.ema import ema_pairs, ema_update
from harl_fast.optim.lars import LARS


class Stepper:
    """One optimizer step after another: micro batches in, networks moved, figures metered."""

    def __init__(self, parts: Parts, *, step: int = 0, skipped: int = 0) -> None:
        self.parts = parts
        self.step = step
        """Optimizer steps done, those without effect included: the schedules' clock."""
        self.meter = Meter()
        self.skipped = torch.full((), skipped, dtype=torch.int64, device=parts.device)
        """Steps without effect, for non-finite gradients; on the device."""
        self._broken = False
        self._target, self._online = ema_pairs(parts.harl.target, parts.harl)

    def advance(self, batches: Iterable[Batch], *, epoch: int) -> None:
        """Do one step on this rank's micro batches of a global batch."""
        parts, settings = self.parts, self.parts.course.at(self.step)
        for group in parts.optimizer.param_groups:
            group["lr"] = settings.lr
        if isinstance(parts.optimizer, LARS):
            parts.optimizer.begin_step()
        for batch in batches:
            views, cells = self._inputs(batch, epoch=epoch)
            loss, figures = parts.engine(views, cells, alpha=settings.alpha, beta=settings.beta)
            self.meter.add({"loss": loss, **figures})
            parts.engine.backward(loss if parts.scale is None else loss * parts.scale.factor)
            if parts.engine.is_gradient_accumulation_boundary():
                self._judge_gradients()
            parts.engine.step()
        applied = self._applied()
        ema_update(self._target, self._online, tau=settings.tau, applied=applied)
        if parts.scale is not None:
            parts.scale.update(applied)
        self.skipped += ~applied
        self._meter_step(applied)
        self.step += 1

    def _inputs(self, batch: Batch, *, epoch: int) -> tuple[list[Tensor], list[Tensor]]:
        device, colour = self.parts.device, self.parts.photometric
        views = [images.to(device, non_blocking=True) for images in batch.views]
        cells = [grid.to(device, non_blocking=True) for grid in batch.cells]
        if colour is not None:
            views = [
                colour(images, view=view, ids=batch.ids, epoch=epoch)
                for view, images in enumerate(views)
            ]
        return views, cells

    def _judge_gradients(self) -> None:
        """Meter the gradient's norm; let a LARS that steps once a group know all of it is finite.

        ZeRO calls the optimizer once a group, so a group that is fine would have moved before a
        later one is found broken.
        """
        optimizer, engine = self.parts.optimizer, self.parts.engine
        if not isinstance(optimizer, LARS):
            norm = gradient_norm(engine)
            self.meter.add({"grad_norm": norm})
            # At stage 0 nothing else guards SGD and AdamW; asking waits for the device.
            self._broken = engine.zero_optimization_stage() == 0 and not bool(torch.isfinite(norm))
            if self._broken:
                engine.zero_grad()  # to None: these optimizers then leave everything alone
        elif engine.zero_optimization_stage() > 0:
            optimizer.applied = optimizer.applied & torch.isfinite(gradient_norm(engine))

    def _applied(self) -> Tensor:
        """Return on the device whether the step moved the networks."""
        optimizer = self.parts.optimizer
        done = self.parts.engine.was_step_applied()  # False where ZeRO itself found an overflow
        if isinstance(optimizer, LARS):
            applied: Tensor = optimizer.applied & done
            return applied
        return torch.full_like(self.skipped, done and not self._broken, dtype=torch.bool)

    def _meter_step(self, applied: Tensor) -> None:
        figures = {"skipped": ~applied}
        if isinstance(self.parts.optimizer, LARS):
            figures["grad_norm"] = self.parts.optimizer.grad_norm
        if self.parts.scale is not None:
            figures["loss_scale"] = self.parts.scale.factor
        self.meter.add(figures)


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


class StopSignal:
    """Turns SIGTERM and SIGINT into a request to save and leave; a second SIGINT interrupts.

    A second SIGTERM does not: DeepSpeed's launcher answers a signal to the process group, such as
    Ctrl-C, by sending each rank one more, and kills what has not left after 30 s.
    """

    def __init__(self) -> None:
        self.number = 0
        self.agreed = False
        """Whether all ranks know of it, so that all leave after the same step."""
        self._before: dict[int, object] = {}

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name if self.number else "another rank's signal"

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

    def agree(self) -> bool:
        """Return whether any rank got a signal; all ranks must call it."""
        self.agreed = any_rank(self.number > 0)
        return self.agreed
