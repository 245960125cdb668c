from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harl_fast.errors import ConfigError
from harl_fast.schedules import (
    cosine_tau,
    scaled_lr,
    size_changes,
    size_schedule,
    warmup_cosine,
    weight_schedule,
)
from tests.oracles import schedules as oracle

unit = st.floats(0.0, 1.0)


def test_learning_rate_follows_byol_and_hits_its_end_points() -> None:
    total, warmup, peak = 1000, 100, 3.2
    rates = [warmup_cosine(k, total=total, warmup=warmup, peak=peak) for k in range(total + 1)]
    assert rates == pytest.approx(
        [oracle.learning_rate(k, total, warmup, peak) for k in range(1001)]
    )
    assert (rates[0], rates[warmup], rates[total]) == (0.0, peak, 0.0)
    assert 0.0 < rates[total - 1] < 1e-5 * peak


def test_learning_rate_without_warmup_starts_at_the_peak_and_ends_at_the_floor() -> None:
    assert warmup_cosine(0, total=10, warmup=0, peak=1.0, floor=0.25) == 1.0
    assert warmup_cosine(10, total=10, warmup=0, peak=1.0, floor=0.25) == 0.25
    assert warmup_cosine(99, total=10, warmup=0, peak=1.0, floor=0.25) == 0.25


@given(st.integers(2, 500), unit, st.floats(1e-3, 10.0), unit)
def test_learning_rate_rises_then_falls_within_its_range(
    total: int, share: float, peak: float, low: float
) -> None:
    warmup, floor = share * (total - 1), low * peak
    rates = [
        warmup_cosine(k, total=total, warmup=warmup, peak=peak, floor=floor)
        for k in range(total + 1)
    ]
    assert all(0.0 <= rate <= peak for rate in rates)
    slack = 1e-12 * peak
    for k in range(total):
        if k + 1 <= warmup:
            assert rates[k] <= rates[k + 1] + slack
        elif k >= warmup:
            assert rates[k] >= rates[k + 1] - slack


def test_tau_follows_byol_and_hits_its_end_points() -> None:
    taus = [cosine_tau(k, total=500, start=0.996, end=1.0) for k in range(501)]
    assert taus == pytest.approx([oracle.tau(k, 500, 0.996) for k in range(501)], rel=1e-15)
    assert (taus[0], taus[500]) == (0.996, 1.0)
    assert cosine_tau(501, total=500, start=0.996) == 1.0


@given(st.integers(1, 300), unit, unit)
def test_tau_is_monotone_and_within_its_ends(total: int, a: float, b: float) -> None:
    start, end = min(a, b), max(a, b)
    taus = [cosine_tau(k, total=total, start=start, end=end) for k in range(total + 1)]
    assert (taus[0], taus[-1]) == (start, end)
    assert all(start <= tau <= end for tau in taus)
    assert all(x <= y + 1e-15 for x, y in pairwise(taus))


@pytest.mark.parametrize(
    ("spec", "formula"),
    [
        ("cosine:0.6:1.0", oracle.alpha),
        ("cosine:0.6:0.0", oracle.beta),
        ("steps:0.5,0.3:0.8,0.9:1.0", oracle.alpha_steps),
        ("steps:0.6,0.5:0.4,0.7:0.2", oracle.beta_steps),
        ("0.6", lambda x: 0.6),
        ("steps:0.5", lambda x: 0.5),
    ],
)
def test_weights_follow_the_released_schedules(spec: str, formula: object) -> None:
    schedule = weight_schedule(spec)
    points = [k / 1000 for k in range(1001)]
    assert [schedule(x) for x in points] == pytest.approx([formula(x) for x in points], abs=1e-15)  # type: ignore[operator]


def test_a_cosine_ends_exactly_so_that_its_term_is_left_out() -> None:
    assert weight_schedule("cosine:0.6:0.0")(1.0) == 0.0
    assert weight_schedule("cosine:0.6:1.0")(1.0) == 1.0


@given(unit, unit, unit)
def test_a_cosine_stays_between_its_ends(start: float, end: float, progress: float) -> None:
    value = weight_schedule(f"cosine:{start!r}:{end!r}")(progress)
    assert min(start, end) <= value <= max(start, end)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("half", "'half' is no number"),
        ("1.5", r"1\.5 is outside \[0, 1\]"),
        ("nan", "nan is outside"),
        ("", "'' is no number"),
        ("cosine:0.6", "two values must follow"),
        ("cosine:0.6:1.0:2", "2 is outside|two values"),
        ("cosine:0.6:-1", "-1 is outside"),
        ("steps:", "'' is no number"),
        ("steps:0.5,0.8", "'0.8' is no TIME:VALUE"),
        ("steps:0.5,0.8:0.1,0.3:0.2", "do not rise"),
        ("steps:0.5,0.0:0.1", "do not rise"),
        ("linear:0:1", "'linear:0:1' is no number"),
    ],
)
def test_a_wrong_schedule_is_named_with_the_valid_forms(spec: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        weight_schedule(spec)
    assert f"'{spec}'" in str(caught.value) and "cosine:START:END" in str(caught.value)


def test_sizes_change_at_their_times() -> None:
    sizes = size_schedule("steps:160,0.7:192,0.85:224")
    assert [sizes(epoch / 20) for epoch in range(20)] == [160] * 14 + [192] * 3 + [224] * 3
    assert size_schedule("96")(0.0) == size_schedule("96")(0.99) == 96


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 10, 20, 100, 1000])
@pytest.mark.parametrize("spec", ["96", "steps:160,0.7:192,0.85:224", "steps:9,0.001:8,0.07:10"])
def test_the_epochs_of_other_sizes_are_those_that_asking_each_epoch_finds(
    spec: str, epochs: int
) -> None:
    sizes = size_schedule(spec)
    every = [sizes(epoch / epochs) for epoch in range(epochs)]
    changes = [epoch for epoch in range(1, epochs) if every[epoch] != every[epoch - 1]]
    assert size_changes(spec, epochs=epochs) == [0, *changes]


def test_a_long_schedule_is_not_asked_epoch_by_epoch() -> None:
    epochs = 10**15
    found = size_changes("steps:160,0.5:192,0.75:224", epochs=epochs)
    assert found == [0, epochs // 2, epochs // 4 * 3]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("cosine:160:224", "'cosine:160:224' is no whole number"),
        ("steps:160,0.7:192.5", r"'192\.5' is no whole number"),
        ("steps:160,0.7:4", "4 px is outside 8 to 1024"),
        ("1025", "1025 px is outside"),
        ("steps:160,1.5:192", r"1\.5 is outside \[0, 1\]"),
        ("steps:160,0.8:192,0.7:224", "do not rise"),
        ("steps:160,192", "'192' is no TIME:VALUE"),
    ],
)
def test_a_wrong_size_schedule_is_named_with_the_valid_forms(spec: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        size_schedule(spec)
    assert f"data.size_schedule '{spec}'" in str(caught.value)
    assert "cosine:START" not in str(caught.value) and "steps:V0" in str(caught.value)


def test_scaling_rules_and_the_identity_between_them() -> None:
    assert scaled_lr(0.2, batch_global=4096) == pytest.approx(3.2)
    assert scaled_lr(0.05, batch_global=4096, rule="sqrt") == pytest.approx(3.2)
    assert scaled_lr(0.2, batch_global=4096, rule="none") == 0.2
    with pytest.raises(ConfigError, match="'cubic'"):
        scaled_lr(0.2, batch_global=4096, rule="cubic")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: scaled_lr(-0.2, batch_global=4096), "base -0.2"),
        (lambda: scaled_lr(0.2, batch_global=0), "batch_global 0"),
        (lambda: warmup_cosine(-1, total=10, warmup=2, peak=1.0), "step -1"),
        (lambda: warmup_cosine(1, total=10, warmup=2, peak=float("nan")), "peak nan"),
        (lambda: cosine_tau(1, total=0, start=0.9), "total 0"),
        (lambda: cosine_tau(1, total=10, start=1.5), "start 1.5"),
    ],
)
def test_no_schedule_is_made_of_numbers_that_are_none(
    call: Callable[[], float], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        call()
