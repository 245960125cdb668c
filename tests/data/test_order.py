"""The order of samples: whole, rank-independent, and resumable at any step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harl_fast.data.order import GlobalOrder
from harl_fast.errors import ConfigError


def global_steps(count: int, batch: int, micro: int, world: int, epoch: int) -> list[set[int]]:
    parts = [
        GlobalOrder(
            count=count, batch_global=batch, batch_micro=micro, rank=rank, world=world, seed=5
        )
        .rank_samples(epoch)
        .reshape(-1, batch // world)
        for rank in range(world)
    ]
    return [set(np.concatenate(step).tolist()) for step in zip(*parts, strict=True)]


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 60), st.integers(0, 3)
)
def test_every_rank_count_sees_the_same_samples_in_a_step(
    world: int, accumulation: int, micro: int, extra: int, epoch: int
) -> None:
    batch = world * accumulation * micro
    count = batch + extra
    split = global_steps(count, batch, micro, world, epoch)
    assert split == global_steps(count, batch, batch, 1, epoch)
    seen = [sample for step in split for sample in step]
    assert len(seen) == len(set(seen)) == count // batch * batch
    assert set(seen) <= set(range(count))


def test_the_dropped_tail_changes_by_epoch() -> None:
    order = GlobalOrder(count=103, batch_global=10, batch_micro=10)
    tails = [set(range(103)) - set(order.rank_samples(epoch).tolist()) for epoch in range(6)]
    assert all(len(tail) == 3 for tail in tails)
    assert len({frozenset(tail) for tail in tails}) == 6


def test_a_later_start_is_the_rest_of_the_epoch() -> None:
    order = GlobalOrder(count=64, batch_global=8, batch_micro=2, rank=1, world=2)
    whole = order.rank_samples(4)
    assert np.array_equal(order.rank_samples(4, first_step=5), whole[5 * 4 :])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"count": 9, "batch_global": 10, "batch_micro": 5}, "fewer than one global batch of 10"),
        ({"count": 99, "batch_global": 10, "batch_micro": 4}, "global batch 10"),
        ({"count": 99, "batch_global": 10, "batch_micro": 5, "world": 3}, "3 ranks"),
        ({"count": 99, "batch_global": 10, "batch_micro": 5, "rank": 2, "world": 2}, "rank 2"),
    ],
)
def test_impossible_batches_are_refused(values: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GlobalOrder(**values)
