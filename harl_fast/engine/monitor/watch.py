"""What is measured and told while a run goes: log records, online probes, contact sheets."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from harl_fast.config import RunConfig, dump_config
from harl_fast.data.loader import decoding_threads
from harl_fast.engine.deepspeed import gather_floats
from harl_fast.engine.monitor.alarms import Supply
from harl_fast.engine.monitor.norms import StepNorms
from harl_fast.engine.monitor.probe import Probe, ProbeStopped, averaged_statistics
from harl_fast.engine.monitor.report import Reporter
from harl_fast.engine.precision import AUTOCAST
from harl_fast.engine.runfolder import RunFolder
from harl_fast.engine.state import Parts
from harl_fast.engine.step import Stepper
from harl_fast.engine.views import loader_colours
from harl_fast.errors import DataError
from harl_fast.files import format_seconds
from harl_fast.host import usable_cores
from harl_fast.optim.lars import LARS


class Sheet(Protocol):
    """Draws some samples of a container as an epoch shows them: `harl_fast.viz.contact_sheet`.

    Given from above, since that module builds on this package.
    """

    def __call__(self, beton: Path, config: RunConfig, out: Path, *, epoch: int) -> None:
        """Write the PNG ``out``; ``epoch`` counts from 0."""


class Watch:
    """Called after every step and every epoch; asks nothing of the device between log lines.

    `step` decides which steps are logged, and arms what measures them one step ahead: spreads in
    the forward pass and norms around the optimizer's step are computed for those steps alone.
    """

    def __init__(
        self, stepper: Stepper, folder: RunFolder, reporter: Reporter, *, sheet: Sheet | None = None
    ) -> None:
        self._stepper, self._folder, self._reporter = stepper, folder, reporter
        self._sheet = sheet
        parts = stepper.parts
        self._parts = parts
        self._norms = StepNorms(parts.optimizer)
        self._began = self._logged = stepper.step
        self._train_s = 0.0
        self._probe = _open_probe(parts, reporter)
        self._arm()

    def step(self, epoch: int) -> bool:
        """Tell of the step just done in ``epoch`` (from 0); all ranks must call it.

        Return whether it was logged, so that the device has been waited for.
        """
        due = self._due(self._stepper.step)
        if due:
            self._log(epoch)
        else:
            self._reporter.tick(epoch=epoch + 1, step=self._stepper.step)
        self._arm()
        return due

    def epoch(self, done: int, *, stopping: Callable[[], bool] = lambda: False) -> None:
        """Probe and draw if ``done`` epochs make it due; all ranks must call it.

        stopping: whether the run was asked to stop, which ends a probe early. A failure is told
        and training goes on: no picture is worth a run.
        """
        start, log = time.monotonic(), self._parts.config.log
        if log.probe_epochs and done % log.probe_epochs == 0:
            with averaged_statistics(self._parts.harl.backbone):
                if self._probe is not None:
                    self._guarded("online probe", lambda: self._judge(done, stopping))
        drawing = log.sheet_epochs > 0 and done % log.sheet_epochs == 0 and not stopping()
        if drawing and self._sheet is not None and self._parts.machine.rank == 0:
            self._guarded("contact sheet", lambda: self._draw(done))
        took = time.monotonic() - start
        self._train_s += took
        self._stepper.meter.exclude(took)

    def _due(self, step: int) -> bool:
        """Return whether the ``step``-th step, from 1, is logged."""
        every, epoch = self._parts.config.log.every_steps, self._parts.course.steps_per_epoch
        return step % every == 0 or step % epoch == 0

    def _arm(self) -> None:
        due = self._due(self._stepper.step + 1)
        self._parts.harl.watched = self._norms.armed = due

    def _log(self, epoch: int) -> None:
        stepper, course = self._stepper, self._parts.course
        stepper.meter.add(self._norms.take())
        figures = stepper.meter.take()
        steps, self._logged = stepper.step - self._logged, stepper.step
        elapsed = figures.pop("elapsed_s")
        self._train_s += elapsed
        per_step = self._train_s / (stepper.step - self._began)
        settings = course.at(stepper.step - 1)
        host = self._host_figures(figures.pop("wait_s"), elapsed)
        self._norm_figures(figures)
        ratios = self._ratios()
        record = {
            "epoch": epoch + 1,
            "step": stepper.step,
            "steps": steps,
            **figures,
            "skipped": round(figures["skipped"] * steps),
            **_range("trust", ratios),
            "lr": settings.lr,
            "tau": settings.tau,
            "alpha": settings.alpha,
            "beta": settings.beta,
            "img_s": steps * self._parts.engine_config.batches.batch_global / elapsed,
            "step_s": elapsed / steps,
            **host,
            "eta_s": per_step * (course.total - stepper.step),
        }
        ends_epoch = stepper.step % course.steps_per_epoch == 0
        self._reporter.write(record, ratios=ratios, ends_epoch=ends_epoch)

    def _host_figures(self, wait_s: float, elapsed: float) -> dict[str, float]:
        """Return what the hosts know: waiting as share and seconds, memory, damaged samples."""
        damage = getattr(self._parts.loader, "damage", None)
        cuda = torch.cuda.max_memory_allocated() / 1e9 if self._parts.device.type == "cuda" else 0.0
        own = [wait_s, wait_s / elapsed, _host_gb(), cuda, damage.count if damage else 0]
        waits, shares, host, cuda_gb, damaged = zip(*gather_floats(own), strict=True)
        return {
            "wait": sum(shares) / len(shares),
            "wait_worst": max(shares),
            "wait_s": sum(waits) / len(waits),
            "host_gb": max(host),
            "cuda_gb": max(cuda_gb),
            "damaged": sum(damaged),
        }

    def _norm_figures(self, figures: dict[str, float]) -> None:
        """Put norms in place of the squares, which are means over ranks."""
        sharded = self._parts.engine.zero_optimization_stage() > 0
        parts = self._parts.machine.ranks if sharded else 1
        for name in ("weight", "update"):
            if f"{name}_sq" in figures:
                figures[f"{name}_norm"] = math.sqrt(parts * figures.pop(f"{name}_sq"))

    def _ratios(self) -> list[float]:
        """Return the last step's trust ratio of each tensor that LARS adapts."""
        optimizer = self._parts.optimizer
        if not isinstance(optimizer, LARS) or self._parts.machine.rank > 0:
            return []
        adapted = {group["name"] for group in optimizer.param_groups if group["lars"]}
        found = [ratio for name, ratio in optimizer.ratios().items() if name in adapted]
        return torch.cat(found).tolist() if found else []

    def _judge(self, done: int, stopping: Callable[[], bool]) -> None:
        assert self._probe is not None
        self._reporter.state("probing")
        autocast = AUTOCAST.get(self._parts.engine_config.precision)
        try:
            found = self._probe(self._parts.harl.backbone, autocast=autocast, stopping=stopping)
        except ProbeStopped:
            return
        finally:
            self._reporter.state("training")
        text = (
            f"epoch {done}/{self._parts.course.epochs} probe  k-NN {found['probe_knn']:.1f}%  "
            f"linear {found['probe_linear']:.1f}%  ({format_seconds(found['probe_s'])})"
        )
        self._reporter.write_probe({"epoch": done, "step": self._stepper.step, **found}, text=text)

    def _draw(self, done: int) -> None:
        assert self._sheet is not None
        out = self._folder.path / "sheets" / f"epoch-{done:04d}.png"
        parts, sheet = self._parts, self._sheet
        self._reporter.picture(
            "views",
            out,
            step=self._stepper.step,
            draw=lambda: sheet(parts.loader.path, parts.config, out, epoch=done - 1),
        )

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        # Whatever fails here has touched no weight; out of memory, a full disk, a damaged sample.
        except Exception as error:  # noqa: BLE001
            self._reporter.say(
                f"warning: the {name} failed ({type(error).__name__}: {error}); training goes on. "
                f"log.{name.split()[-1]}_epochs=0 turns it off"
            )


def open_reporter(parts: Parts, folder: RunFolder, *, step: int, quiet: bool) -> Reporter:
    """Return the reporter of a run that goes on after ``step`` steps."""
    config, machine = parts.config, parts.machine
    store = getattr(parts.loader.manifest, "store", {})
    supply = Supply(
        batches_ahead=config.data.batches_ahead,
        threads=decoding_threads(config.data.workers, ranks_here=machine.ranks_here),
        cores=max(1, usable_cores() // machine.ranks_here),
        store=str(store.get("kind", "jpg")),
        loader_colours=loader_colours(config, parts.device),
        on_gpu=parts.device.type == "cuda",
    )
    engine = json.dumps(parts.engine_config.record(), indent=2)
    return Reporter(
        folder,
        epochs=parts.course.epochs,
        silent=machine.rank > 0,
        first_step=step,
        total=parts.course.total,
        batch=parts.engine_config.batches.batch_global,
        quiet=quiet,
        supply=supply,
        texts={"config/method": dump_config(config), "config/engine": engine},
    )


def _open_probe(parts: Parts, reporter: Reporter) -> Probe | None:
    """Return rank 0's probe if one is wanted; say so at the start if the data cannot serve."""
    log, machine = parts.config.log, parts.machine
    if not log.probe_epochs or machine.rank > 0:
        return None
    threads = decoding_threads(parts.config.data.workers, ranks_here=machine.ranks_here)
    try:
        probe = Probe(parts.loader.path, parts.config, device=parts.device, threads=threads)
    except DataError as error:
        reporter.say(f"warning: no online probe: {error}")
        return None
    if probe.held_out:
        reporter.note(
            "online probe: no val.beton beside train.beton, so a third of its images is held out"
        )
    return probe


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
