"""The optimizer step that pretraining and fine-tuning share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from harl_fast.data.loader import Batch
from harl_fast.engine import deepspeed as ds
from harl_fast.engine.monitor.metrics import Meter
from harl_fast.engine.monitor.nonfinite import NonfiniteLog
from harl_fast.engine.state import LoopState
from harl_fast.engine.transfer import Transfer
from harl_fast.model.norm import FiniteStatistics
from harl_fast.optim.lars import LARS


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
