"""One optimizer step: micro batches in, networks moved, figures metered."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from harl_fast.data.loader import Batch
from harl_fast.engine.deepspeed import gradient_norm
from harl_fast.engine.monitor.meter import Meter
from harl_fast.engine.monitor.nonfinite import Verdicts
from harl_fast.engine.state import Parts
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
        self.verdicts = Verdicts(lowest_scale=None if parts.scale is None else parts.scale.lowest)
        self._fine = torch.ones((), dtype=torch.bool, device=parts.device)
        self._target, self._online = ema_pairs(parts.harl.target, parts.harl)

    def advance(self, batches: Iterable[Batch], *, epoch: int) -> None:
        """Do one step on this rank's micro batches of a global batch."""
        parts, settings = self.parts, self.parts.course.at(self.step)
        for group in parts.optimizer.param_groups:
            group["lr"] = settings.lr
        if isinstance(parts.optimizer, LARS):
            parts.optimizer.begin_step()
        ids = []
        for batch in batches:
            ids.append(batch.ids)
            views, cells = self._inputs(batch, epoch=epoch)
            loss, figures = parts.engine(views, cells, alpha=settings.alpha, beta=settings.beta)
            self.meter.add({"loss": loss, **figures})
            parts.engine.backward(loss if parts.scale is None else loss * parts.scale.factor)
            if parts.engine.is_gradient_accumulation_boundary():
                self._judge_gradients()
            parts.engine.step()
        applied = self._applied()
        ema_update(self._target, self._online, tau=settings.tau, applied=applied)
        factor = None if parts.scale is None else parts.scale.factor
        self.verdicts.note(self.step + 1, ids=ids, applied=applied, scale=factor)
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
        """Tell the optimizer, on the device, whether the whole gradient is finite; meter its norm.

        ZeRO calls the optimizer once a group, so a group that is fine would move before a later
        one is found broken. Only a LARS that is called once takes all norms itself.
        """
        optimizer, engine, scale = self.parts.optimizer, self.parts.engine, self.parts.scale
        if isinstance(optimizer, LARS) and engine.zero_optimization_stage() == 0:
            return
        norm = gradient_norm(engine)
        self._fine = torch.isfinite(norm)
        if isinstance(optimizer, LARS):
            optimizer.applied = optimizer.applied & self._fine
            return
        # torch's own name; its fused SGD and AdamW then skip without asking the host.
        optimizer.found_inf = (~self._fine).float()  # type: ignore[attr-defined]
        self.meter.add({"grad_norm": norm if scale is None else norm / scale.factor})

    def _applied(self) -> Tensor:
        """Return on the device whether the step moved the networks."""
        optimizer = self.parts.optimizer
        fine = optimizer.applied if isinstance(optimizer, LARS) else self._fine
        # False where ZeRO itself found an overflow, which it looks for only if it clips.
        applied: Tensor = fine & self.parts.engine.was_step_applied()
        return applied

    def _meter_step(self, applied: Tensor) -> None:
        figures = {"skipped": ~applied}
        if isinstance(self.parts.optimizer, LARS):
            figures["grad_norm"] = self.parts.optimizer.grad_norm
        if self.parts.scale is not None:
            figures["loss_scale"] = self.parts.scale.factor
        self.meter.add(figures)
