"""Figures, log lines and alarms."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harl_fast.engine.course import Course
from harl_fast.engine.health import ALARMS, Health
from harl_fast.engine.machine import Machine
from harl_fast.engine.meter import Meter
from harl_fast.engine.report import Reporter, log_line
from harl_fast.engine.runfolder import RunFolder
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


def test_a_record_goes_to_all_three_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    with Reporter(folder, epochs=100, silent=False) as reporter:
        reporter.write(GOOD)
        reporter.write({**GOOD, "step": 3800, "loss": float("nan"), "skipped": 50})
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


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(RunFolder(tmp_path), epochs=1, silent=True) as reporter:
        reporter.write(GOOD)
        reporter.say("hello")
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
    assert message.startswith(f"warning: {kind}: ")
    assert health.check(bad) == []
    assert health.check(GOOD) == []
    assert health.check(bad) == [message]
    assert kind in {alarm.kind for alarm in ALARMS}


def test_a_loss_scale_may_overflow_now_and_then() -> None:
    assert Health().check({**GOOD, "skipped": 10, "loss_scale": 1.0}) == []


def test_the_meter_averages_and_starts_again(machine: Machine) -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "norm": torch.tensor(8.0, dtype=torch.float64)})
    meter.add({"loss": torch.tensor(4.0)})
    assert meter.take().items() >= {"loss": 2.5, "norm": 8.0}.items()
    assert set(meter.take()) == {"elapsed_s", "wait_s"}


def test_the_meter_counts_waiting_but_not_the_start_up(machine: Machine) -> None:
    def slow() -> object:
        for pause in (0.3, 0.1, 0.0):
            time.sleep(pause)
            yield pause

    meter = Meter()
    for _ in meter.timed(slow()):  # type: ignore[arg-type]
        time.sleep(0.1)
    figures = meter.take()
    assert figures["elapsed_s"] >= 0.3
    # The first pause of 0.3 s is start-up; a loaded machine only lengthens both sides.
    assert 0.1 <= figures["wait_s"] <= figures["elapsed_s"] - 0.2


def test_the_course_warms_up_and_ends_at_zero(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    course = Course.of(config, steps_per_epoch=10, batch_global=512)
    assert course.total == 20
    assert [course.at(step).lr for step in (0, 5, 20)] == [0.0, 2.0 * 512 / 256, 0.0]
    assert (course.at(0).tau, course.at(20).tau) == (0.9, 1.0)
    assert (course.at(0).alpha, course.at(20).alpha) == (0.6, 1.0)
    assert (course.at(0).beta, course.at(20).beta) == (0.6, 0.3)
