"""Sections 4 and 7 of the GPU check: whole runs by guard and launcher, stopped and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_sections import CheckSettings, Findings, read_findings
from harl_fast.runfiles import RunFolder
from harl_fast.steps import ROOT, training

EPOCHS = 30
"""More than a run comes to before it is asked to stop; resumed, it gets `MORE`."""
MORE = 2
SLOW = ("--set", "data.workers=1", "--set", "data.colour=loader")
"""One thread that colours, too: it cannot feed a GPU."""
SMALL = (
    *(
        "--set",
        "data.size_schedule=32",
        "--set",
        "model.width=0.125",
        "--set",
        "model.arch=resnet18",
    ),
    *("--set", "model.projector_hidden=64", "--set", "model.predictor_hidden=64"),
    *("--engine-set", "train_batch_size=16"),
)
QUERY = (
    "nvidia-smi",
    "--query-compute-apps=gpu_uuid,pid,used_memory",
    "--format=csv,noheader,nounits",
)


class Run:
    """A pretraining of `paper` in a folder of the check, or of its reduced form."""

    def __init__(self, settings: CheckSettings, name: str, *, ranks: int, batch: int) -> None:
        self._settings, self._ranks = settings, ranks
        self.folder = RunFolder(settings.work / name)
        shutil.rmtree(self.folder.path, ignore_errors=True)  # of an earlier check
        self._engine = "ds_configs/cpu.json" if settings.small else "ds_configs/gpu.json"
        sizes = (f"train_micro_batch_size_per_gpu={batch // ranks}", f"train_batch_size={batch}")
        self._own = SMALL if settings.small else [w for s in sizes for w in ("--engine-set", s)]
        self._job: subprocess.Popen[bytes] | None = None
        self._log = settings.work / f"{name}.log"
        self._log.unlink(missing_ok=True)

    def start(self, *words: str) -> None:
        """Start it."""
        command = [sys.executable, *training(self._ranks), "launch/pretrain.py"]
        command += ["--deepspeed_config", self._engine, *self._own, "--data", self._settings.data]
        command += ["--run", str(self.folder.path), *words]
        # What this section's own place as a rank is must not be taken for theirs.
        ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
        env = {name: value for name, value in os.environ.items() if name not in ranks}
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            self._job = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)

    def wait_for(self, what: Callable[[], bool]) -> bool:
        """Wait until a condition holds or the run has ended; return whether it holds."""
        assert self._job is not None
        while not what():
            if self._job.poll() is not None:
                return what()
            time.sleep(0.1)
        return True

    def end(self, number: int | None = None) -> int:
        """Send the guard a signal, if one is given, and return the run's exit code."""
        assert self._job is not None
        if number is not None:
            self._job.send_signal(number)
        return self._job.wait()

    def records(self) -> list[dict[str, Any]]:
        """Return the log records so far, without the probes'."""
        if not self.folder.metrics.exists():
            return []
        lines = self.folder.metrics.read_text().splitlines()
        return [record for record in map(json.loads, lines) if "img_s" in record]

    def alarmed(self) -> bool:
        """Return whether it has warned that images come too slowly."""
        return "warning: data-wait" in self._log.read_text(errors="replace")

    def steps(self) -> int:
        """Return how many steps were logged."""
        return int(self.records()[-1]["step"]) if self.records() else 0


def stopped_and_resumed(run: Run, found: Findings, number: int) -> None:
    """Stop a run while it trains, and resume it to its end."""
    name = signal.Signals(number).name
    code = run.end(number)
    found.at_most(f"exit code after {name}", code, 0)
    found.holds(f"the run is marked as preempted after {name}", run.folder.preempted.exists())
    step, epoch = run.steps(), run.records()[-1]["epoch"] if run.records() else 1
    run.start("--resume", "--epochs", str(epoch + MORE), "--allow-change", "epochs")
    found.at_most("exit code of the resumed run", run.end(), 0)
    found.holds("the resumed run is finished", run.folder.finished.exists())
    found.at_least("steps after the resumption", run.steps() - step, 1)


def end_to_end(settings: CheckSettings, found: Findings) -> None:
    """Section 4: with the real loader, probes and checkpoints; SIGUSR1, resumption, alarms."""
    run = Run(settings, "run", ranks=1, batch=512)
    often = ["--set", "log.checkpoint_epochs=1", "--set", "log.probe_epochs=1"]
    often += ["--set", "log.probe_images=400", "--set", "log.every_steps=1000"]
    often += ["--set", "optim.warmup_epochs=1", "--set", "log.sheet_epochs=0"]
    run.start("--config", "paper", "--epochs", str(EPOCHS), *often)
    run.wait_for(lambda: len(run.records()) >= 4)
    stopped_and_resumed(run, found, signal.SIGUSR1)
    records = run.records()[1:]  # the first warms up
    if records:
        worst = max(record["wait_worst"] for record in records)
        found.at_most("waits for images, the worst epoch", 100.0 * worst, 20.0, "%", timing=True)
        rate = statistics.median(record["img_s"] for record in records)
        found.note("images per second", rate)
        if alone := rate_of_a_step(Path(settings.out)):
            found.at_least("of the step's alone", rate / alone, 0.95, "x", timing=True)
    if settings.small:
        return  # a CPU both decodes and trains: which of them waits says nothing
    found.holds("no alarm of a loader that is too slow", not run.alarmed())
    slow = Run(settings, "slow", ranks=1, batch=512)
    slow.start("--config", "paper", "--epochs", "2", *often, "--set", "log.probe_epochs=0", *SLOW)
    found.at_most("exit code with a slow loader", slow.end(), 0)
    found.holds("a loader that is too slow raises the alarm", slow.alarmed())


def rate_of_a_step(out: Path) -> float | None:
    """Return section 3's images per second, if it has measured them."""
    path = out / "section-3.jsonl"
    rows = read_findings(path)[0] if path.exists() else []
    return next((row.measured for row in rows if row.what == "images per second"), None)


def several(settings: CheckSettings, found: Findings) -> None:
    """Section 7: all GPUs over NCCL; contexts where they belong, SIGTERM, resumption, `repo-pt`."""
    import torch

    ranks = 2 if settings.small else torch.cuda.device_count()
    run = Run(settings, "several", ranks=ranks, batch=256 * ranks)
    quiet = ["--set", "log.probe_epochs=0", "--set", "log.sheet_epochs=0"]
    quiet += ["--set", "optim.warmup_epochs=1", "--set", "log.every_steps=10"]
    run.start("--config", "paper", "--epochs", "1000", *quiet)
    steps = 10 if settings.small else 100
    found.holds(f"{steps} steps on {ranks} ranks", run.wait_for(lambda: run.steps() >= steps))
    if not settings.small:
        contexts(found, ranks=ranks)
    stopped_and_resumed(run, found, signal.SIGTERM)
    sync = Run(settings, "repo-pt", ranks=ranks, batch=256 * ranks)
    sync.start("--config", "repo-pt", "--epochs", "1000", *quiet)
    found.holds("20 steps of repo-pt", sync.wait_for(lambda: sync.steps() >= 20))
    found.at_most("exit code of repo-pt after SIGTERM", sync.end(signal.SIGTERM), 0)
    if records := sync.records()[1:]:
        found.note("repo-pt, images per second", records[-1]["img_s"])


def contexts(found: Findings, *, ranks: int) -> None:
    """Check that each GPU holds its own rank's process alone."""
    try:
        text = subprocess.run(QUERY, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        found.fact("contexts", f"nvidia-smi: {error}")
        return
    counted = processes_by_gpu(text)
    if not counted:
        found.fact("contexts", "nvidia-smi lists no processes here")
        return
    found.at_most("processes on one GPU", max(counted.values()), 1)
    found.at_least("GPUs with a process", len(counted), ranks)


def processes_by_gpu(text: str) -> Counter[str]:
    """Return how many processes each GPU holds. text: what nvidia-smi answers to `QUERY`."""
    rows = [line.split(", ") for line in text.splitlines() if line.count(", ") == 2]
    return Counter(gpu for gpu, _, _ in {tuple(row) for row in rows})
