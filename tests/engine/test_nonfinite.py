"""Steps without effect: which samples they had, and how many there were in a row."""

from __future__ import annotations

import pytest
import torch

from harl_fast.engine.machine import Machine
from harl_fast.engine.monitor.nonfinite import NonfiniteLog, SkippedStep


def add(log: NonfiniteLog, applied: str, *, first: int = 1, scale: float | None = None) -> None:
    """Add one step per letter: y had an effect, n had none."""
    for number, letter in enumerate(applied, start=first):
        log.add(
            number,
            ids=[torch.tensor([10 * number]), torch.tensor([10 * number + 1])],
            applied=torch.tensor(letter == "y"),
            scale=None if scale is None else torch.tensor(scale),
        )


def test_steps_without_effect_come_once_with_their_samples(machine: Machine) -> None:
    log = NonfiniteLog()
    add(log, "yny")
    assert log.drain() == [SkippedStep(2, [[20, 21]])]
    assert log.drain() == []
    add(log, "n", first=4)
    assert log.drain() == [SkippedStep(4, [[40, 41]])]


@pytest.mark.parametrize(
    ("letters", "streak", "first"),
    [("yyy", 0, 0), ("nny", 0, 1), ("ynn", 2, 2), ("nynnn", 3, 3), ("nnnn", 4, 1)],
)
def test_a_streak_is_counted_over_drains(
    machine: Machine, letters: str, streak: int, first: int
) -> None:
    for cut in range(len(letters)):
        log = NonfiniteLog()
        add(log, letters[:cut])
        log.drain()
        add(log, letters[cut:], first=cut + 1)
        log.drain()
        assert (log.streak, log.first) == (streak, first)


def test_a_loss_scale_that_can_still_fall_excuses_a_step(machine: Machine) -> None:
    log = NonfiniteLog(lowest_scale=1.0)
    for number, scale in enumerate([8.0, 4.0, 2.0, 1.0, 1.0], start=1):
        add(log, "n", first=number, scale=scale)
    assert [step.step for step in log.drain()] == [1, 2, 3, 4, 5]
    assert (log.streak, log.first) == (2, 4)
