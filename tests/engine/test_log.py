"""Figures, log lines and alarms."""

from __future__ import annotations

import io
import json
import os
import re
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harl_fast.engine.machine import Machine
from harl_fast.engine.monitor.alarms import ALARMS, Health, Supply
from harl_fast.engine.monitor.metrics import Meter
from harl_fast.engine.monitor.sink import LogRecord, RunInfo, Sink, State
from harl_fast.engine.monitor.sinks import SINKS, Sinks, log_line
from harl_fast.engine.schedule import Schedule
from harl_fast.files import LiveLine
from harl_fast.runfiles import RunFolder
from tests.engine.runs import train
from tests.engine.support import tiny_config

GOOD: dict[str, float] = {
    "epoch": 12,
    "step": 3750,
    "steps": 50,
    "loss": 1.8421,
    "loss/whole": 1.9,
    "z_std": 0.98,
    "fg": 0.314,
    "empty": 0.003,
    "skipped": 0,
    "grad_norm": 2.5,
    "wait": 0.012,
    "wait_worst": 0.02,
    "img_s": 2410.4,
    "lr": 2.713,
    "tau": 0.99612,
    "alpha": 0.7,
    "beta": 0.5,
    "eta_s": 22320.0,
}


def test_the_log_line_has_its_fields_in_order() -> None:
    assert log_line(GOOD, epochs=100) == (
        "epoch 12/100 step 3750  loss 1.8421 (whole 1.9000)  img_s 2410  wait 2.0%  z_std 0.98  "
        "fg 31.4%  empty 0.3%  lr 2.713  tau 0.99612  eta 6h12m"
    )


def test_no_name_of_a_run_breaks_a_line_of_its_log(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run\nof mine"
    train(folder, machine, config=tmp_path)
    capsys.readouterr()
    Path(folder, "metrics.jsonl").unlink()
    Path(folder, "metrics.jsonl").mkdir()
    with Sinks(RunInfo(RunFolder(folder), epochs=100)) as sinks:
        sinks.write(GOOD)
        sinks.info(f"written to {folder}")
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if r"run\nof mine" in line]) == 2
    assert not [line for line in lines if line.startswith("of mine")]


def test_a_record_goes_to_all_three_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    with Sinks(RunInfo(folder, epochs=100)) as sinks:
        sinks.write(GOOD)
        sinks.write({**GOOD, "step": 3800, "loss": float("nan"), "skipped": 50})
    first, second = folder.metrics.read_text().splitlines()
    assert json.loads(first) == GOOD
    assert json.loads(second)["step"] == 3800 and json.loads(second)["loss"] is None
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == log_line(GOOD, epochs=100)
    assert printed[2].startswith("warning: non-finite: 50 of the last 50 steps")
    board = EventAccumulator(str(folder.tensorboard))
    board.Reload()
    assert [event.step for event in board.Scalars("loss/total")] == [3750, 3800]
    assert board.Scalars("spread/target_projections")[0].value == pytest.approx(0.98)


class Diary(Sink):
    """A sink from outside the package."""

    seen: ClassVar[list[object]] = []

    def write(self, record: LogRecord) -> None:
        self.seen.append((record.figures["step"], sorted(record.alarms)))

    def state(self, state: State, reason: str = "") -> None:
        self.seen.append(state)

    def close(self) -> None:
        self.seen.append("closed")


def test_a_sink_can_be_added_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SINKS, "diary", Diary)
    with Sinks(RunInfo(RunFolder(tmp_path), epochs=100)) as sinks:
        sinks.write({**GOOD, "z_std": 0.0})
    assert Diary.seen == ["training", (3750, ["collapse"]), "preempted", "closed"]


def test_every_tag_is_described_and_runs_are_compared_by_their_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    run = RunInfo(folder, hparams={"optim.lr": 2.0, "loss.type": "byol"})
    with Sinks(run) as sinks:
        sinks.write(GOOD)
    assert folder.tensorboard.name == tmp_path.name  # the name that TensorBoard shows
    board = EventAccumulator(str(folder.tensorboard))
    board.Reload()
    scalars = board.Tags()["scalars"]
    assert {"loss/total", "loss/whole"} <= set(scalars)
    assert all(board.summary_metadata[tag].summary_description for tag in scalars)
    for plugin in ("hparams", "custom_scalars"):
        assert board.PluginTagToContent(plugin)


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Sinks(RunInfo(RunFolder(tmp_path), epochs=1), silent=True) as sinks:
        sinks.write(GOOD)
        sinks.warn("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("non-finite", {"skipped": 1}),
        ("non-finite", {"skipped": 40, "loss_scale": 1.0}),
        ("collapse", {"z_std": 0.05}),
        ("data-wait", {"wait_worst": 0.4}),
        ("empty-mask", {"empty": 0.7}),
        ("full-mask", {"fg": 0.99}),
        ("dead-layer", {"trust_min": 0.0}),
        ("large-step", {"update_norm": 4.0, "weight_norm": 10.0}),
        ("damaged", {"damaged": 2}),
    ],
)
def test_alarms_are_told_once_until_they_clear(kind: str, change: dict[str, float]) -> None:
    health, bad = Health(), {**GOOD, **change}
    assert health.check(GOOD) == []
    (message,) = health.check(bad)
    assert health.on == {kind}
    assert message.startswith(f"warning: {kind}: ")
    assert health.check(bad) == []
    assert health.check(GOOD) == []
    assert health.check(bad) == [message]
    assert kind in {alarm.kind for alarm in ALARMS}


@pytest.mark.parametrize(
    ("supply", "words"),
    [
        (Supply(threads=2, cores=8), ["data.workers (this rank decodes with 2 of its 8", "yuv420"]),
        (Supply(threads=8, cores=8, store="raw"), ["fit the RAM"]),
        (Supply(on_gpu=True, loader_colours=True), ["data.colour=device"]),
        (Supply(batches_ahead=5), ["data.batches_ahead (now 5)"]),
    ],
)
def test_a_starving_run_is_told_what_its_own_set_up_allows(
    supply: Supply, words: list[str]
) -> None:
    (message,) = Health(supply).check({**GOOD, "wait": 0.3, "wait_worst": 0.41})
    assert "41% of the time" in message and "30% on average" in message
    for word in words:
        assert word in message
    assert ("data.workers" in message) == (supply.threads < supply.cores)
    assert ("data.colour" in message) == supply.loader_colours
    assert ("STORE=yuv420" in message) == (supply.store == "jpg")


def test_waiting_for_an_epoch_to_begin_is_no_starvation() -> None:
    health = Health(Supply(batches_ahead=3))
    assert health.check({**GOOD, "wait_worst": 0.9, "steps": 6}) == []
    assert len(health.check({**GOOD, "wait_worst": 0.9, "steps": 7})) == 1
    assert health.on == {"data-wait"}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_line_that_makes_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((200, 20)))
    monkeypatch.setattr("harl_fast.engine.monitor.sinks.time.monotonic", lambda: 1000.0)
    run = RunInfo(RunFolder(tmp_path), epochs=100, total=5000, batch_global=64)
    with Sinks(run) as sinks:
        sinks.progress(epoch=12, step=3749)  # the first step sets the clock and shows nothing
        sinks._ticked = 0.0
        sinks.write(GOOD)
        sinks._mark = (3750, 990.0)  # ten seconds ago
        sinks.progress(epoch=12, step=3760)
        sinks.progress(epoch=12, step=3761)  # too soon to draw again
        sinks.warn("hello")
    log, progress, blank, hello = re.split(r"[\r\n]+", screen.getvalue().rstrip("\n"))
    assert log == log_line(GOOD, epochs=100) and hello == "hello"
    assert re.fullmatch(
        r"epoch 12/100 step 3,760/5,000  loss 1\.8421  64 images/s  eta 6h11m", progress
    )
    assert blank == " " * len(progress)
    status = json.loads((tmp_path / "run.json").read_text())
    assert status["state"] == "preempted"  # nobody said how it ended
    assert (status["step"], status["total"], status["loss"]) == (3760, 5000, GOOD["loss"])


def test_a_line_is_cut_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((30, 20)))
    screen = Terminal()
    line = LiveLine(screen)
    line.show("x" * 100)
    assert screen.getvalue() == "\r" + "x" * 29
    line.show("y")
    assert screen.getvalue().endswith("\ry" + " " * 28)


def test_what_cannot_be_written_is_told_once_and_borne(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    with Sinks(RunInfo(folder, epochs=100)) as sinks:
        folder.metrics.mkdir()  # no user, not even root, can append to a folder
        for step in (3750, 3800):
            sinks.write({**GOOD, "step": step})
        folder.metrics.rmdir()
        sinks.write({**GOOD, "step": 3850})
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "metrics.jsonl cannot be written" in warnings[0]
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [3850]


def test_a_loss_scale_may_overflow_now_and_then() -> None:
    assert Health().check({**GOOD, "skipped": 10, "loss_scale": 1.0}) == []


def test_the_meter_averages_and_starts_again(machine: Machine) -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "norm": torch.tensor(8.0, dtype=torch.float64)})
    meter.add({"loss": torch.tensor(4.0)})
    assert meter.drain().items() >= {"loss": 2.5, "norm": 8.0}.items()
    assert set(meter.drain()) == {"elapsed_s", "wait_s"}


def test_the_meter_folds_what_has_become_long(machine: Machine) -> None:
    meter, count = Meter(), 2000
    for number in range(count):
        meter.add({"flag": torch.tensor(number % 4 == 0), "loss": torch.tensor(float(number))})
    assert max(len(values) for values in meter._values.values()) <= 512
    figures = meter.drain()
    assert (figures["flag"], figures["loss"]) == (0.25, (count - 1) / 2)


def test_time_beside_the_training_is_left_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("harl_fast.engine.monitor.metrics.time.monotonic", lambda: now[0])
    meter = Meter()
    now[0] += 10.0
    meter.exclude(8.0)
    assert meter.drain()["elapsed_s"] == 2.0


def test_the_meter_counts_waiting_but_not_the_start_up(machine: Machine) -> None:
    def slow() -> object:
        for pause in (0.3, 0.1, 0.0):
            time.sleep(pause)
            yield pause

    meter = Meter()
    for _ in meter.timed(slow()):  # type: ignore[arg-type]
        time.sleep(0.1)
    figures = meter.drain()
    assert figures["elapsed_s"] >= 0.3
    # The first pause of 0.3 s is start-up; a loaded machine only lengthens both sides.
    assert 0.1 <= figures["wait_s"] <= figures["elapsed_s"] - 0.2


def test_the_course_warms_up_and_ends_at_zero(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    schedule = Schedule.of(config, steps_per_epoch=10, batch_global=512)
    assert schedule.total == 20
    assert [schedule.at(step).lr for step in (0, 5, 20)] == [0.0, 2.0 * 512 / 256, 0.0]
    assert (schedule.at(0).tau, schedule.at(20).tau) == (0.9, 1.0)
    assert (schedule.at(0).alpha, schedule.at(20).alpha) == (0.6, 1.0)
    assert (schedule.at(0).beta, schedule.at(20).beta) == (0.6, 0.3)
