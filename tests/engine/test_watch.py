"""Watching a run: what it tells is right, and does not change it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harl_fast.config import RunConfig
from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.machine import Machine
from harl_fast.engine.monitor.tensorboard import TAGS
from harl_fast.engine.stop import StopSignal
from harl_fast.engine.trainer import Stepper, Trainer
from harl_fast.engine.views import build_loader
from harl_fast.optim.lars import LARS
from harl_fast.runfiles import RunFolder
from harl_fast.supervision import Process
from harl_fast.viz import contact_sheet
from tests.engine.support import BATCH, STEPS, FakeLoader, engine_config, prepare, tiny_config

PROBED = ("log.probe_epochs=1", "log.probe_images=40", "log.sheet_epochs=2")


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]


def board(folder: Path) -> EventAccumulator:
    found = EventAccumulator(
        str(RunFolder(folder).tensorboard), size_guidance={"images": 0, "histograms": 0}
    )
    found.Reload()
    return found


def run_json(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def state_of(run: Trainer) -> dict[str, bytes]:
    """Return every bit that training goes on from."""
    tensors = {
        **{f"online.{k}": v for k, v in run.state.harl.state_dict().items()},
        **{f"target.{k}": v for k, v in run.state.harl.target.state_dict().items()},
        "torch": torch.get_rng_state(),
    }
    found = {name: tensor.detach().cpu().numpy().tobytes() for name, tensor in tensors.items()}
    keys = np.random.get_state()[1]  # noqa: NPY002
    return {**found, "numpy": np.asarray(keys).tobytes()}


def test_probe_and_sheet_tell_and_change_nothing(
    machine: Machine, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same run with and without: every weight, statistic and generator is bit-identical."""
    loader = build_loader(tiny_config(tmp_path), engine_config(), machine, data=data)
    ends = {}
    for name, config in {"plain": (), "probed": PROBED}.items():
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        run = prepare(machine, tmp_path / name, loader=loader, config=config, sheet=contact_sheet)
        assert run.run() == 0
        ends[name] = state_of(run)
        assert all(module.training for module in run.state.harl.modules())
    assert ends["plain"] == ends["probed"]
    assert len(ends["plain"]) > 200

    probes = [record for record in records(tmp_path / "probed") if "probe_knn" in record]
    assert [(r["epoch"], r["step"]) for r in probes] == [(1, STEPS), (2, 2 * STEPS)]
    assert all(0.0 <= r[key] <= 100.0 for r in probes for key in ("probe_knn", "probe_linear"))
    assert "epoch 2/2 probe  k-NN" in capsys.readouterr().err
    found = board(tmp_path / "probed")
    assert [e.value for e in found.Scalars("probe/knn_top1")] == pytest.approx(
        [r["probe_knn"] for r in probes]
    )
    (picture,) = found.Images("views")
    png = tmp_path / "probed" / "sheets" / "epoch-0002.png"
    assert picture.encoded_image_string == png.read_bytes() and picture.step == 2 * STEPS
    assert not (tmp_path / "plain" / "sheets").exists()


def test_a_failing_probe_or_sheet_is_told_and_training_goes_on(
    machine: Machine, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(beton: Path, config: RunConfig, out: Path, *, epoch: int) -> None:
        raise OSError("no space left")

    loader = build_loader(tiny_config(tmp_path), engine_config(), machine, data=data)
    run = prepare(machine, tmp_path, loader=loader, config=PROBED, sheet=broken)
    run.monitor._probe = broken  # type: ignore[assignment]
    before = [m.training for m in run.state.harl.modules()]
    with run.sinks:
        run.monitor.epoch(2)
    printed = capsys.readouterr().err
    assert "warning: the online probe failed (TypeError" in printed
    text = (
        f"warning: {tmp_path / 'sheets'} cannot be written; training goes on without it. no space"
    )
    assert text in printed
    assert [m.training for m in run.state.harl.modules()] == before


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_ratios_and_norms_are_those_of_the_formula(
    machine: Machine, tmp_path: Path, stage: int
) -> None:
    """Against float64 formulas on the weights and gradients that the optimizer was given."""
    engine = (f"zero_optimization.stage={stage}",)
    run = prepare(machine, tmp_path, engine=engine, config=("log.every_steps=2",))
    optimizer, seen = run.state.optimizer, {}
    assert isinstance(optimizer, LARS)
    sizes = {
        group["name"]: [p.numel() for p in parameters]
        for group, parameters in zip(optimizer.param_groups, groups_of(run), strict=True)
    }

    def look(_: Any, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            weights, grads = (
                torch.cat([tensor.detach().double().flatten() for tensor in tensors])
                for tensors in (group["params"], [p.grad for p in group["params"]])
            )
            seen[group["name"]] = (weights, grads, group["weight_decay"], group["trust"])

    optimizer.register_step_pre_hook(look)
    for number in range(2):
        run.stepper.advance([FakeLoader().batch(number)], epoch=0)
        with run.sinks:
            run.monitor.step(run.stepper.step, epoch=0)
    (record,) = records(tmp_path)
    expected = []
    for name, (weights, grads, decay, trust) in seen.items():
        if decay == 0.0:
            continue  # norm layers and biases: not adapted
        count = sum(sizes[name])
        for w, g in zip(
            weights[:count].split(sizes[name]), grads[:count].split(sizes[name]), strict=True
        ):
            expected.append(float(trust * w.norm() / (g + decay * w).norm()))
    assert len(expected) > 20
    assert record["trust_min"] == pytest.approx(min(expected), rel=1e-5)
    assert record["trust_median"] == pytest.approx(np.median(expected), rel=1e-5)
    assert record["trust_max"] == pytest.approx(max(expected), rel=1e-5)
    histogram = board(tmp_path).Histograms("trust/histogram")[-1].histogram_value
    assert (histogram.num, histogram.max) == (len(expected), pytest.approx(max(expected)))

    before = torch.cat([weights for weights, *_ in seen.values()])
    after = torch.cat(
        [p.detach().double().flatten() for g in optimizer.param_groups for p in g["params"]]
    )
    assert record["weight_norm"] == pytest.approx(float(after.norm()), rel=1e-5)
    assert record["update_norm"] == pytest.approx(float((after - before).norm()), rel=1e-4)


def groups_of(run: Trainer) -> list[list[torch.nn.Parameter]]:
    """Return each group's parameters in the order in which the optimizer holds them."""
    engine = run.state.engine
    if engine.zero_optimization_stage():
        return [list(group) for group in engine.optimizer.bit16_groups]
    return [group["params"] for group in run.state.optimizer.param_groups]


def test_records_are_complete_and_the_same_everywhere(machine: Machine, tmp_path: Path) -> None:
    run = prepare(machine, tmp_path, config=("log.every_steps=4",))
    assert run.run() == 0
    found, shown = records(tmp_path), board(tmp_path)
    assert [record["step"] for record in found] == [4, 6, 8, 12]
    names = {key: tag for key, (tag, _) in TAGS.items()}
    names |= {f"loss/{term}": f"loss/{term}" for term in ("whole", "fg")}
    for record in found:
        missing = {key for key in names if not key.startswith("probe")} - record.keys()
        assert missing == {"loss_scale"}  # not used by this precision
        assert record.keys() - names.keys() == {"epoch", "step", "steps"}
        assert 0.0 < record["host_gb"] < 64.0 and record["cuda_gb"] == record["damaged"] == 0
        assert 0.0 <= record["wait"] <= record["wait_worst"] <= 1.0
        assert record["img_s"] == pytest.approx(BATCH / record["step_s"])
        assert 0.0 < record["z_std"] < 1.5 and 0.0 < record["h_std"] < 1.0 and record["p_std"] > 0
    for key, name in names.items():
        if key in found[0]:
            events = shown.Scalars(name)
            assert [e.step for e in events] == [record["step"] for record in found]
            values = [record[key] for record in found]
            assert [e.value for e in events] == pytest.approx(values, rel=1e-6), name
    assert len(shown.Histograms("trust/histogram")) == len(found)
    assert {"config/method/text_summary", "config/engine/text_summary"} <= set(
        shown.Tags()["tensors"]
    )


def test_only_logged_steps_are_measured(machine: Machine, tmp_path: Path) -> None:
    run = prepare(machine, tmp_path, config=("log.every_steps=4",))
    measured = []
    for number in range(8):
        run.stepper.advance([FakeLoader().batch(number)], epoch=0)
        measured.append(("z_std" in run.stepper.meter._values, bool(run.monitor._norms._squares)))
        run.monitor.step(number + 1, epoch=0)  # every 4 steps and at the epoch's end, after 6
    assert measured == [(step in (4, 6, 8),) * 2 for step in range(1, 9)]


@pytest.mark.parametrize("lost", [False, True])
def test_the_end_of_what_looks_after_a_rank_ends_the_run_with_a_save(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    monkeypatch.setattr("harl_fast.supervision.PERIOD_S", 0.01)
    process = subprocess.Popen(["sleep", "60"])
    watched = Process.of(process.pid)
    assert watched is not None
    run, advance = prepare(machine, tmp_path), Stepper.advance

    def patched(self: Stepper, *args: Any, **kwargs: Any) -> None:
        if self.step == 3 and lost:
            process.kill(), process.wait()
            time.sleep(0.5)
        advance(self, *args, **kwargs)

    monkeypatch.setattr(Stepper, "advance", patched)
    with StopSignal(supervisors={"its launcher": watched}) as stop:
        run = Trainer(run.state, run.folder, stop=stop)
        assert run.run() == 0
    process.kill(), process.wait()
    state = run_json(tmp_path)
    assert open_checkpoint(tmp_path).record.step == state["step"] == (4 if lost else 2 * STEPS)
    assert state["state"] == ("preempted" if lost else "finished")
    assert state["reason"] == (f"lost: its launcher (process {process.pid}) is gone" * lost)


def test_run_json_is_valid_at_every_moment_and_ends_finished(
    machine: Machine, tmp_path: Path
) -> None:
    run, seen, stop = prepare(machine, tmp_path, config=("epochs=3",)), [], threading.Event()

    def poll() -> None:
        while not stop.is_set():
            if (tmp_path / "run.json").exists():
                seen.append(run_json(tmp_path))

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        run.run()
    finally:
        stop.set()
        poller.join()
    states = {found["state"] for found in seen}
    assert states <= {"starting", "warming", "training", "saving", "finished"}
    steps = [found["step"] for found in seen]
    assert len(seen) > 20 and steps == sorted(steps)
    last = run_json(tmp_path)
    total = 3 * STEPS
    assert last["state"] == "finished" and last["reason"] == "" and last["warnings"] == []
    assert (last["step"], last["total"], last["epoch"], last["epochs"]) == (total, total, 3, 3)
    assert (last["pid"], last["last_checkpoint"]) == (os.getpid(), f"step-{total:08d}")
    assert last["loss"] == records(tmp_path)[-1]["loss"] and last["eta_s"] == 0.0


@pytest.mark.parametrize("how", ["preempted", "failed", "interrupted"])
def test_run_json_ends_in_a_final_state(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run, advance = prepare(machine, tmp_path), Stepper.advance

    def patched(self: Stepper, *args: Any, **kwargs: Any) -> None:
        if self.step == 3 and how == "failed":
            raise RuntimeError("the device is gone")
        if self.step == 3 and how == "interrupted":
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self, *args, **kwargs)

    monkeypatch.setattr(Stepper, "advance", patched)
    if how == "failed":
        with pytest.raises(RuntimeError, match="gone"):
            run.run()
        assert run_json(tmp_path)["reason"] == "RuntimeError: the device is gone"
    elif how == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            run.run()
        assert run_json(tmp_path)["reason"] == "interrupted twice"
    else:
        run.run()
        assert open_checkpoint(tmp_path).record.step == 4
    assert run_json(tmp_path)["state"] == ("preempted" if how == "preempted" else "failed")


def test_a_quiet_run_prints_an_epoch_a_line(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(machine, tmp_path, quiet=True).run()
    lines = [line for line in capsys.readouterr().err.splitlines() if "step" in line]
    assert [line.split("  ")[0] for line in lines[:2]] == [
        f"epoch 1/2 step {STEPS}",
        f"epoch 2/2 step {2 * STEPS}",
    ]
    first = [record["loss"] for record in records(tmp_path) if record["epoch"] == 1]
    assert f"loss {np.mean(first):.4f}" in lines[0]  # all of its records have two steps
    assert len(lines) == 3  # the last says that all is done
    assert len(records(tmp_path)) == STEPS
