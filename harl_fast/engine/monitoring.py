"""When a run measures and what it reports: log records, alarms, online probes, contact sheets."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from harl_fast.collectives import gather_floats
from harl_fast.config import RunConfig
from harl_fast.data.loader import decoding_threads
from harl_fast.engine.compilation import compiled_graphs
from harl_fast.engine.monitor.alarms import Supply
from harl_fast.engine.monitor.metrics import Meter, StepNorms
from harl_fast.engine.monitor.probe import (
    Probe,
    ProbeStopped,
    ReplacedError,
    averaged_statistics,
    check_same,
)
from harl_fast.engine.monitor.sink import RunInfo
from harl_fast.engine.monitor.sinks import Sinks
from harl_fast.engine.precision import AUTOCAST
from harl_fast.engine.state import LoopState, TrainState
from harl_fast.engine.views import small_map_text
from harl_fast.errors import DataError
from harl_fast.host import owned_cores
from harl_fast.optim.lars import LARS
from harl_fast.runfiles import RunFolder
from harl_fast.textfile import nodes


class Sheet(Protocol):
    """Draws some samples of a container as an epoch shows them: `harl_fast.viz.contact_sheet`.

    Given from above, since that module builds on this package.
    """

    def __call__(self, beton: Path, config: RunConfig, out: Path, *, epoch: int) -> None:
        """Write the PNG ``out``; ``epoch`` counts from 0."""


class Monitor:
    """Called after every step and every epoch; asks nothing of the device between log lines.

    `step` decides which steps are logged, and arms what measures them one step ahead: spreads in
    the forward pass and norms around the optimizer's step are computed for those steps alone.
    """

    def __init__(
        self,
        state: LoopState,
        meter: Meter,
        folder: RunFolder,
        *,
        step: int = 0,
        quiet: bool = False,
    ) -> None:
        """step: optimizer steps done before."""
        run = _run_info(state, folder, step=step, quiet=quiet)
        self.sinks = Sinks(run, silent=state.machine.rank > 0, supply=_supply(state))
        self._state: LoopState = state
        self._meter = meter
        self._norms = StepNorms(state.optimizer)
        self._step = self._began = self._logged = step
        self._train_s = 0.0
        self._arm()

    def introduce(self) -> None:
        """Say what is about to run."""
        state, schedule = self._state, self._state.schedule
        self.sinks.info(
            f"{self.sinks.run.folder.path}: {state.subject} on {state.device.type}, "
            f"{state.engine_config.precision}, ZeRO stage {state.engine_config.stage}; "
            f"{state.engine_config.batches}; {state.loader.count:,} images, "
            f"{schedule.epochs} epochs of {schedule.steps_per_epoch} steps, "
            f"peak lr {schedule.lr_peak:.4g}"
        )
        if self._began:
            self.sinks.info(f"resuming after step {self._began}")
        self.sinks.state("warming")

    def step(self, step: int, *, epoch: int) -> bool:
        """Tell that the ``step``-th step (from 1) of ``epoch`` (from 0) is done; all ranks must.

        Return whether it was logged, so that the device has been waited for.
        """
        self._step = step
        due = self._due(step)
        if due:
            self._log(epoch)
        else:
            self.sinks.progress(epoch=epoch + 1, step=step)
        self._arm()
        return due

    def epoch(self, done: int, *, stopping: Callable[[], bool] = lambda: False) -> None:
        """Do what ``done`` epochs make due; all ranks must call it.

        stopping: whether the run was asked to stop.
        """

    def _due(self, step: int) -> bool:
        """Return whether the ``step``-th step, from 1, is logged."""
        every, schedule = self._state.config.log.every_steps, self._state.schedule
        return step % every == 0 or step % schedule.steps_per_epoch == 0 or step == schedule.total

    def _arm(self) -> None:
        self._state.module.watched = self._norms.armed = self._due(self._step + 1)

    def _log(self, epoch: int) -> None:
        step, schedule = self._step, self._state.schedule
        self._meter.add(self._norms.drain())
        figures = self._meter.drain()
        steps, self._logged = step - self._logged, step
        elapsed = figures.pop("elapsed_s")
        self._train_s += elapsed
        per_step = self._train_s / (step - self._began)
        host = self._host_figures(figures.pop("wait_s"), elapsed)
        for name in ("weight", "update"):  # squares, of a rank's shards under ZeRO
            if f"{name}_sq" in figures:
                sharded = self._state.engine.zero_optimization_stage() > 0
                ranks = self._state.machine.ranks if sharded else 1  # the meter took their mean
                figures[f"{name}_norm"] = math.sqrt(ranks * figures.pop(f"{name}_sq"))
        ratios = self._ratios()
        record = {
            "epoch": epoch + 1,
            "step": step,
            "steps": steps,
            **figures,
            "skipped": round(figures["skipped"] * steps),
            **_range("trust", ratios),
            **schedule.figures(step - 1),
            "img_s": steps * self.sinks.run.batch_global / elapsed,
            "step_s": elapsed / steps,
            **host,
            "eta_s": per_step * (schedule.total - step),
        }
        ends_epoch = step % schedule.steps_per_epoch == 0
        self.sinks.write(record, ratios=ratios, ends_epoch=ends_epoch)

    def _host_figures(self, wait_s: float, elapsed: float) -> dict[str, float]:
        """Return what the hosts know: waiting as share and seconds, memory, damaged samples."""
        cuda = torch.cuda.max_memory_allocated() / 1e9 if self._state.device.type == "cuda" else 0.0
        damaged = self._state.loader.damage.count
        own = [wait_s, wait_s / elapsed, _host_gb(), cuda, damaged]
        waits, shares, host, cuda_gb, damaged_by_rank = zip(*gather_floats(own), strict=True)
        return {
            "wait": sum(shares) / len(shares),
            "wait_worst": max(shares),
            "wait_s": sum(waits) / len(waits),
            "host_gb": max(host),
            "cuda_gb": max(cuda_gb),
            "damaged": sum(damaged_by_rank),
        }

    def _ratios(self) -> list[float]:
        """Return the last step's trust ratio of each tensor that LARS adapts."""
        optimizer = self._state.optimizer
        if not isinstance(optimizer, LARS) or self._state.machine.rank > 0:
            return []
        adapted = {group["name"] for group in optimizer.param_groups if group["lars"]}
        found = [ratio for name, ratio in optimizer.ratios().items() if name in adapted]
        return torch.cat(found).tolist() if found else []


class PretrainMonitor(Monitor):
    """The same of a pretraining, with online probes and contact sheets between epochs."""

    _state: TrainState

    def __init__(
        self,
        state: TrainState,
        meter: Meter,
        folder: RunFolder,
        *,
        step: int = 0,
        quiet: bool = False,
        sheet: Sheet | None = None,
    ) -> None:
        """step: optimizer steps done before."""
        super().__init__(state, meter, folder, step=step, quiet=quiet)
        self._sheet = sheet
        self._probe = self._open_probe()
        self._graphs = 0

    def introduce(self) -> None:
        """Say what is about to run."""
        super().introduce()
        if warning := small_map_text(self._state.config):
            self.sinks.warn(warning)

    def epoch(self, done: int, *, stopping: Callable[[], bool] = lambda: False) -> None:
        """Probe and draw if ``done`` epochs make it due; all ranks must call it.

        Also tell how many graphs torch.compile has made, if there are more than before.
        stopping: whether the run was asked to stop, which ends a probe early. A failure is told
        and training goes on: no picture is worth a run.
        """
        start, log = time.monotonic(), self._state.config.log
        if self._state.config.model.compile and (graphs := compiled_graphs()) > self._graphs:
            self._graphs = graphs
            self.sinks.info(f"epoch {done}: torch.compile has made {graphs} graphs so far")
        if log.probe_epochs and done % log.probe_epochs == 0:
            with averaged_statistics(self._state.harl.backbone):
                if self._probe is not None:
                    self._guarded("online probe", lambda: self._run_probe(done, stopping))
        drawing = log.sheet_epochs > 0 and done % log.sheet_epochs == 0 and not stopping()
        if drawing and self._sheet is not None and self._state.machine.rank == 0:
            self._guarded("contact sheet", lambda: self._draw(done))
        took = time.monotonic() - start
        self._train_s += took
        self._meter.exclude(took)

    def _open_probe(self) -> Probe | None:
        """Return rank 0's probe if one is wanted; say so at the start if the data cannot serve."""
        state = self._state
        if not state.config.log.probe_epochs or state.machine.rank > 0:
            return None
        threads = decoding_threads(state.config.data.workers, ranks_here=state.machine.ranks_here)
        try:
            probe = Probe(
                state.loader.path,
                state.loader.manifest,
                state.config,
                device=state.device,
                threads=threads,
            )
        except DataError as error:
            self.sinks.warn(f"warning: no online probe: {error}")
            return None
        if probe.held_out:
            self.sinks.info(
                "online probe: no val split beside the training set, so a third of its images is "
                "held out"
            )
        return probe

    def _run_probe(self, done: int, stopping: Callable[[], bool]) -> None:
        assert self._probe is not None
        self.sinks.state("probing")
        autocast = AUTOCAST.get(self._state.engine_config.precision)
        try:
            found = self._probe(self._state.harl.backbone, autocast=autocast, stopping=stopping)
        except ProbeStopped:
            return
        finally:
            self.sinks.state("training")
        self.sinks.write_probe({"epoch": done, "step": self._step, **found})

    def _draw(self, done: int) -> None:
        assert self._sheet is not None
        out = self.sinks.run.folder.path / "sheets" / f"epoch-{done:04d}.png"
        state, sheet = self._state, self._sheet
        loader, skip_broken = state.loader, state.config.data.skip_broken
        check_same(loader.path, loader.manifest, skip_broken=skip_broken)
        self.sinks.image(
            "views",
            out,
            step=self._step,
            draw=lambda: sheet(state.loader.path, state.config, out, epoch=done - 1),
        )

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except ReplacedError as error:
            self._probe = self._sheet = None
            self.sinks.warn(f"warning: no more online probes and contact sheets: {error}")
        # Whatever fails here has touched no weight; out of memory, a full disk, a damaged sample.
        except Exception as error:  # noqa: BLE001
            self.sinks.warn(
                f"warning: the {name} failed ({type(error).__name__}: {error}); training goes on. "
                f"log.{name.split()[-1]}_epochs=0 turns it off"
            )


def _run_info(state: LoopState, folder: RunFolder, *, step: int, quiet: bool) -> RunInfo:
    """Return what sinks may know of a run."""
    config, engine = state.config, state.engine_config
    # The settings that tell runs apart.
    method = config.model_dump(exclude={"data", "log", "variable_schema", "subset"})
    return RunInfo(
        folder,
        epochs=state.schedule.epochs,
        total=state.schedule.total,
        first_step=step,
        batch_global=engine.batches.batch_global,
        quiet=quiet,
        texts={
            "config/method": config.yaml(),
            "config/engine": json.dumps(engine.record(), indent=2),
        },
        hparams={
            **{
                key: value
                for key, _, value in nodes(method)
                if isinstance(value, int | float | str)
            },
            "batch_global": engine.batches.batch_global,
            "precision": engine.precision,
        },
    )


def _supply(state: LoopState) -> Supply:
    """Return how this rank's images come."""
    machine = state.machine
    return Supply(
        batches_ahead=state.config.data.batches_ahead,
        threads=decoding_threads(state.config.data.workers, ranks_here=machine.ranks_here),
        cores=owned_cores(machine.ranks_here),
        store=str(state.loader.manifest.store.get("kind", "jpg")),
        loader_colours=state.photometric is None,
        on_gpu=state.device.type == "cuda",
    )


def _range(name: str, values: list[float]) -> dict[str, float]:
    """Return least, median and largest of the finite values, or nothing if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return {}
    low, middle, high = min(finite), statistics.median(finite), max(finite)
    return {f"{name}_min": low, f"{name}_median": middle, f"{name}_max": high}


def _host_gb() -> float:
    """Return this process's memory in 10^9 bytes without mapped files, whose pages are cache."""
    try:
        text = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return 0.0
    sizes = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return sum(int(sizes[key].split()[0]) for key in ("RssAnon", "RssShmem") if key in sizes) / 1e6
