"""The order of samples: whole, rank-independent, resumable at any step, and local if quasi."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harl_fast.data.order import (
    CHUNK_BYTES,
    GlobalOrder,
    Kind,
    chunk_length,
    quasi_permutation,
)
from harl_fast.errors import ConfigError

KINDS: st.SearchStrategy[Kind] = st.sampled_from(["random", "quasi"])


def global_steps(epoch: int, *, batch: int, world: int, **others: Any) -> list[set[int]]:
    """Return the samples of each global step, all ranks together."""
    parts = [
        GlobalOrder(batch_global=batch, rank=rank, world=world, seed=5, **others)
        .rank_samples(epoch)
        .reshape(-1, batch // world)
        for rank in range(world)
    ]
    return [set(np.concatenate(step).tolist()) for step in zip(*parts, strict=True)]


@given(
    kind=KINDS,
    world=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    micro=st.integers(1, 5),
    extra=st.integers(0, 60),
    epoch=st.integers(0, 3),
    chunk=st.integers(1, 12),
    window=st.integers(1, 6),
)
def test_every_rank_count_sees_the_same_samples_in_a_step(
    kind: Kind,
    world: int,
    accumulation: int,
    micro: int,
    extra: int,
    epoch: int,
    chunk: int,
    window: int,
) -> None:
    batch = world * accumulation * micro
    same = {"count": batch + extra, "kind": kind, "chunk": chunk, "window": window}
    split = global_steps(epoch, batch=batch, world=world, batch_micro=micro, **same)
    assert split == global_steps(epoch, batch=batch, world=1, batch_micro=batch, **same)
    seen = [sample for step in split for sample in step]
    assert len(seen) == len(set(seen)) == (batch + extra) // batch * batch
    assert set(seen) <= set(range(batch + extra))


@given(
    count=st.integers(0, 200),
    chunk=st.integers(1, 40),
    window=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_a_quasi_order_is_a_permutation_that_finishes_each_window_before_the_next(
    count: int, chunk: int, window: int, epoch: int
) -> None:
    order = quasi_permutation(7, epoch, count, chunk=chunk, window=window)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, quasi_permutation(7, epoch, count, chunk=chunk, window=window))
    chunks = list(dict.fromkeys((order // chunk).tolist()))  # in the order of first use
    for first in range(0, len(chunks), window):
        together = chunks[first : first + window]
        size = sum(min(count, (c + 1) * chunk) - c * chunk for c in together)
        stretch, order = order[:size], order[size:]
        assert set((stretch // chunk).tolist()) == set(together)


@given(st.integers(0, 2**32), st.integers(1, 400))
def test_a_stretch_of_a_quasi_order_touches_few_chunks(seed: int, length: int) -> None:
    """As long as a window of 4 chunks of 25 or shorter, it lies in at most two windows."""
    order = quasi_permutation(seed, 0, 1000, chunk=25, window=4) // 25
    for first in range(0, 1000 - length, 37):
        windows = -(-length // 100) + 1
        assert len(np.unique(order[first : first + length])) <= 4 * windows


def test_a_quasi_order_mixes_inside_the_window_and_over_the_set() -> None:
    order = quasi_permutation(0, 0, 4096, chunk=32, window=8)
    first = order[:64] // 32
    assert len(np.unique(first)) == 8  # all chunks of the window are in the first quarter of it
    steps = np.diff(order)
    assert (steps == 1).mean() < 0.05 and (steps > 0).mean() == pytest.approx(0.5, abs=0.05)
    followers = np.diff(np.array(list(dict.fromkeys((order // 32).tolist()))))
    assert (followers == 1).mean() < 0.1


@pytest.mark.parametrize("kind", ["random", "quasi"])
def test_the_dropped_tail_changes_by_epoch(kind: Kind) -> None:
    order = GlobalOrder(count=103, batch_global=10, batch_micro=10, kind=kind, chunk=8, window=2)
    tails = [set(range(103)) - set(order.rank_samples(epoch).tolist()) for epoch in range(60)]
    assert all(len(tail) == 3 for tail in tails)
    assert len({frozenset(tail) for tail in tails[:6]}) == 6
    # 60 epochs drop 180 of 103 samples: evenly, a sample is missed with e^-1.7, 20 or so are.
    assert len(set().union(*tails)) > 60


@given(kind=KINDS, first=st.integers(0, 8))
def test_a_later_start_is_the_rest_of_the_epoch(kind: Kind, first: int) -> None:
    order = GlobalOrder(
        count=64, batch_global=8, batch_micro=2, rank=1, world=2, kind=kind, chunk=5, window=3
    )
    whole = order.rank_samples(4)
    assert np.array_equal(order.rank_samples(4, first_step=first), whole[first * 4 :])


def test_seeds_and_epochs_give_other_orders() -> None:
    for kind in ("random", "quasi"):
        orders = {
            tuple(
                GlobalOrder(
                    count=50, batch_global=5, batch_micro=5, seed=seed, kind=kind, chunk=5, window=2
                ).rank_samples(epoch)
            )
            for seed in (0, 1)
            for epoch in (0, 1)
        }
        assert len(orders) == 4


def test_a_chunk_is_eight_mebibytes_of_samples() -> None:
    assert chunk_length(count=1000, total_bytes=1000 * (CHUNK_BYTES // 80)) == 80
    assert chunk_length(count=3, total_bytes=100 * CHUNK_BYTES) == 1
    assert chunk_length(count=0, total_bytes=0) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"count": 0}, "empty.*make beton"),
        ({"count": 3, "world": 5}, "3 samples for 5 ranks"),
        ({"count": 9}, "fewer than one global batch of 10"),
        ({"batch_micro": 4}, "global batch 10"),
        ({"world": 3}, "3 ranks"),
        ({"rank": 2, "world": 2}, "rank 2"),
        ({"world": 0}, "rank 0 of 0"),
        ({"batch_micro": 0}, "micro batch 0"),
        ({"batch_global": 0}, "global batch 0"),
        ({"kind": "quasi", "chunk": 0}, "chunk 0"),
        ({"kind": "quazi"}, "did you mean 'quasi'"),
    ],
)
def test_impossible_orders_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GlobalOrder(**{"count": 99, "batch_global": 10, "batch_micro": 5, **values})
