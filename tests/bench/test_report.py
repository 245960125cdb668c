"""The benchmark's arithmetic, against figures worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.report import (
    BARE,
    Row,
    bar_table,
    disturbance,
    memory_rows,
    rates,
    ratio_rows,
    reference,
)
from benchmarks.step import RATIOS, crop_rows, plans, rows_of, wait_rows
from benchmarks.step_setup import MULTICROP, PAIR, fixed_batch, run_config
from benchmarks.worker import steady, typical
from harl_fast.plan.work import pretraining_work


def test_a_ratio_is_taken_within_each_round_against_the_fastest_peer() -> None:
    speeds = {
        "ours_uint8": [10.0, 40.0, 30.0],
        "bare": [20.0, 50.0, 50.0],
        "bare_fastdct": [40.0, 80.0, 60.0],
    }
    assert reference(speeds, BARE) == "bare_fastdct"
    (row,) = [row for row in ratio_rows(speeds) if row.bar == "L4"]
    assert row.measured == 0.5 and row.spread is not None
    assert (row.spread.least, row.spread.most) == (0.25, 0.5)
    assert row.verdict == "MISSED" and "bare_fastdct" in row.what
    assert reference(speeds, ("absent",)) is None


def test_rates_are_samples_over_seconds() -> None:
    rounds = {"a": [{"samples": 30, "seconds": 2.0}, {"samples": 5, "seconds": 0.5}]}
    assert rates(rounds) == {"a": [15.0, 10.0]}


def test_other_programs_at_work_are_reported() -> None:
    turn = {"samples": 1.0, "seconds": 1.0}
    quiet, loud = turn | {"others": 0.05}, turn | {"others": 0.9}
    assert disturbance({"a": [quiet, quiet]}) == ""
    assert "1 turns, at worst 0.90 cores during b" in disturbance({"a": [quiet], "b": [loud]})


@pytest.mark.parametrize(
    ("measured", "less", "verdict"),
    [(3.0, False, "goal"), (2.5, False, "floor"), (1.9, False, "MISSED"), (3.1, True, "MISSED")],
)
def test_verdicts(measured: float, less: bool, verdict: str) -> None:
    row = Row("L3", "x", measured, "x", 2.0, 3.0, less_is_better=less)
    assert row.verdict == verdict
    assert verdict in bar_table([row])


def test_memory_is_compared_with_one_slot_more_than_is_made_ahead() -> None:
    taken = {
        "anonymous before": 100e6, "anonymous peak": 800e6, "buffer": 150e6, "buffers needed": 4,
        "file before": 10e6, "file peak": 60e6,
    }  # fmt: skip
    above, needed, excess, pages = memory_rows(taken)
    assert (above.measured, needed.measured, excess.measured, pages.measured) == (700, 600, 100, 50)
    assert above.goal == 664.0 and above.verdict == "MISSED" and excess.verdict == "MISSED"


def test_steady_state_leaves_out_the_first_batches_of_turn_and_epoch() -> None:
    now = [0.0]

    def items() -> Iterator[tuple[int, None]]:
        while True:
            yield 0, None
            for place in range(5):
                now[0] += 100.0 if place < 2 else 1.0  # the first two are slow: new buffers
                yield 8, None

    samples, seconds = steady(items(), lead=2, seconds=6.0, clock=lambda: now[0])
    assert (samples, seconds) == (48, 6.0)
    now[0] = 1000.0
    ones = ((1, None) for now[0] in (1001.0, 1002.0, 1003.0, 1004.0))
    assert steady(ones, lead=0, seconds=2.0, clock=lambda: now[0]) == (2, 2.0)


def test_typical_steps_ignore_a_disturbed_one_and_the_first() -> None:
    now = [0.0]

    def items() -> Iterator[tuple[int, None]]:
        for took in (50.0, 50.0, 2.0, 2.0, 9.0, 2.0, 2.0):
            now[0] += took
            yield 4, None

    samples, seconds = typical(items(), lead=2, seconds=16.0, clock=lambda: now[0])
    assert (samples, seconds) == (20, 10.0)


def test_a_step_ratio_is_a_time_over_a_time_and_of_its_round() -> None:
    turn = {"samples": 10.0}
    rounds = {
        "ours": [turn | {"seconds": s} for s in (2.06, 4.08, 2.1)],
        "bare": [turn | {"seconds": s} for s in (2.0, 4.0, 2.0)],
        "lars_ours": [turn | {"seconds": 1.0}] * 3,
        "lars_solo": [turn | {"seconds": 3.0}] * 3,
    }
    step, lars = rows_of(rounds, ("T1", "T2", "O1"))
    assert (step.bar, step.verdict) == ("T1", "floor") and step.measured == pytest.approx(1.03)
    assert (lars.bar, lars.verdict) == ("O1", "goal") and lars.measured == pytest.approx(3.0)
    (wait,) = wait_rows([{"wait_s": 2.0 * s, "elapsed_s": 2.0} for s in (0.001, 0.03, 0.002)])
    assert wait.measured == pytest.approx(0.2) and wait.verdict == "goal"


def test_a_multi_crop_step_is_compared_with_its_flop() -> None:
    config = run_config("byol+f_loss", sizes=MULTICROP)
    assert [view.role for view in config.data.views] == ["both"] * 2 + ["online"] * 4
    batch = fixed_batch(batch=2, channels_last=False, sizes=MULTICROP)
    assert [grid.shape[-1] for grid in batch.cells] == [2, 2, 1, 1, 1, 1]
    two = pretraining_work(run_config("byol+f_loss"), PAIR, half=False).flops
    many = pretraining_work(config, MULTICROP, half=False).flops
    (row,) = crop_rows({"ours": [10.0, 10.0], "ours_multicrop": [10.0 * two / many / 1.1] * 2})
    assert row.measured == pytest.approx(1.1) and row.verdict == "floor"
    assert crop_rows({"ours": [10.0]}) == []


def test_every_ratio_of_the_step_benchmark_has_its_contenders() -> None:
    made = plans(("T1", "T2", "T3", "T4", "T6", "T7", "O1", "O2"), batch=8, threads=1)
    names = {name for ratio in RATIOS for name in (ratio.ours, *ratio.peers)}
    assert {name for name in names if "lightly" not in name} <= made.keys() <= names
