"""The order of samples: whole, rank-independent, resumable at any step, and local if quasi."""

from __future__ import annotations

import hashlib
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harl_fast import rng
from harl_fast.data import order as module
from harl_fast.data.order import CHUNK_BYTES, VERSIONS, GlobalOrder, Kind, chunk_length, permuted
from harl_fast.errors import ConfigError

KINDS: st.SearchStrategy[Kind] = st.sampled_from(["random", "quasi"])
ALL_VERSIONS = st.sampled_from(VERSIONS)
UNLIKELY = 1e-4
"""Of a chi-square test. Keys are fixed, so that each either passes for good or does not."""


def whole(count: int, *, epoch: int = 0, **others: Any) -> npt.NDArray[np.int64]:
    """Return all ids of an epoch in their order."""
    return GlobalOrder(count=count, batch_global=1, batch_micro=1, **others).rank_samples(epoch)[:]


def global_steps(epoch: int, *, batch: int, world: int, **others: Any) -> list[set[int]]:
    """Return the samples of each global step, all ranks together."""
    parts = [
        GlobalOrder(batch_global=batch, rank=rank, world=world, seed=5, **others)
        .rank_samples(epoch)[:]
        .reshape(-1, batch // world)
        for rank in range(world)
    ]
    return [set(np.concatenate(step).tolist()) for step in zip(*parts, strict=True)]


@given(
    kind=KINDS,
    version=ALL_VERSIONS,
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
    version: int,
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
    same["version"] = version
    split = global_steps(epoch, batch=batch, world=world, batch_micro=micro, **same)
    assert split == global_steps(epoch, batch=batch, world=1, batch_micro=batch, **same)
    seen = [sample for step in split for sample in step]
    assert len(seen) == len(set(seen)) == (batch + extra) // batch * batch
    assert set(seen) <= set(range(batch + extra))


@given(
    version=ALL_VERSIONS,
    count=st.integers(1, 200),
    chunk=st.integers(1, 40),
    window=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_a_quasi_order_is_a_permutation_that_finishes_each_window_before_the_next(
    version: int, count: int, chunk: int, window: int, epoch: int
) -> None:
    how = {"kind": "quasi", "version": version, "epoch": epoch, "chunk": chunk, "window": window}
    order = whole(count, seed=7, **how)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, whole(count, seed=7, **how))
    chunks = list(dict.fromkeys((order // chunk).tolist()))  # in the order of first use
    for first in range(0, len(chunks), window):
        together = chunks[first : first + window]
        size = sum(min(count, (c + 1) * chunk) - c * chunk for c in together)
        stretch, order = order[:size], order[size:]
        assert set((stretch // chunk).tolist()) == set(together)


@given(ALL_VERSIONS, st.integers(0, 2**32), st.integers(1, 400))
def test_a_stretch_of_a_quasi_order_touches_few_chunks(
    version: int, seed: int, length: int
) -> None:
    """As long as a window of 4 chunks of 25 or shorter, it lies in at most two windows."""
    order = whole(1000, seed=seed, kind="quasi", version=version, chunk=25, window=4) // 25
    for first in range(0, 1000 - length, 37):
        windows = -(-length // 100) + 1
        assert len(np.unique(order[first : first + length])) <= 4 * windows


@pytest.mark.parametrize("version", VERSIONS)
def test_a_quasi_order_mixes_inside_the_window_and_over_the_set(version: int) -> None:
    order = whole(4096, kind="quasi", version=version, chunk=32, window=8)
    first = order[:64] // 32
    assert len(np.unique(first)) == 8  # all chunks of the window are in the first quarter of it
    steps = np.diff(order)
    assert (steps == 1).mean() < 0.05 and (steps > 0).mean() == pytest.approx(0.5, abs=0.05)
    followers = np.diff(np.array(list(dict.fromkeys((order // 32).tolist()))))
    assert (followers == 1).mean() < 0.1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["random", "quasi"])
def test_the_dropped_tail_changes_by_epoch(kind: Kind, version: int) -> None:
    batches = {"batch_global": 10, "batch_micro": 10}
    order = GlobalOrder(count=103, kind=kind, chunk=8, window=2, version=version, **batches)
    tails = [set(range(103)) - set(order.rank_samples(epoch)[:].tolist()) for epoch in range(60)]
    assert all(len(tail) == 3 for tail in tails)
    assert len({frozenset(tail) for tail in tails[:6]}) == 6
    # 60 epochs drop 180 of 103 samples: evenly, a sample is missed with e^-1.7, 20 or so are.
    assert len(set().union(*tails)) > 60


@given(kind=KINDS, version=ALL_VERSIONS, first=st.integers(0, 8))
def test_a_later_start_is_the_rest_of_the_epoch(kind: Kind, version: int, first: int) -> None:
    batches = {"batch_global": 8, "batch_micro": 2, "rank": 1, "world": 2}
    order = GlobalOrder(count=64, kind=kind, chunk=5, window=3, version=version, **batches)
    every = order.rank_samples(4)
    rest = order.rank_samples(4, first_step=first)
    assert len(every) == 32 and len(rest) == 32 - 4 * first
    assert np.array_equal(rest[:], every[first * 4 :])
    # In slices of another length it is the same, and behind its end there is nothing.
    pieces = [rest[start : start + 3] for start in range(0, 36, 3)]
    assert np.array_equal(np.concatenate(pieces), rest[:])


def test_seeds_and_epochs_give_other_orders() -> None:
    for kind in ("random", "quasi"):
        orders = {
            tuple(
                GlobalOrder(
                    count=50, batch_global=5, batch_micro=5, seed=seed, kind=kind, chunk=5, window=2
                ).rank_samples(epoch)[:]
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
        ({"world": 0}, "world 0: give"),
        ({"batch_micro": 0}, "batch_micro 0: give"),
        ({"batch_global": 0}, "batch_global 0: give"),
        ({"kind": "quasi", "chunk": 0}, "chunk 0"),
        ({"kind": "quazi"}, "did you mean 'quasi'"),
        ({"version": 3}, "version 3 of the sample order is none of 1, 2: continue with the harl"),
        ({"version": "two"}, "version 'two'"),
    ],
)
def test_impossible_orders_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GlobalOrder(**{"count": 99, "batch_global": 10, "batch_micro": 5, **values})


@given(st.integers(0, 2**64 - 1), st.one_of(st.integers(1, 70), st.integers(71, 5000)))
def test_a_keyed_permutation_is_one_and_its_elements_are_found_alone(key: int, count: int) -> None:
    found = permuted(key, count, np.arange(count))
    assert sorted(found.tolist()) == list(range(count))
    some = np.array([count - 1, 0, count // 2])
    assert np.array_equal(permuted(key, count, some), found[some])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9, 10, 17, 64])
def test_every_sample_and_pair_of_samples_is_as_likely_at_every_position(count: int) -> None:
    keys = 30_000
    rows = np.array(
        [permuted(rng.stream(5, k, 0, 0, 0), count, np.arange(count)) for k in range(keys)]
    )
    for position in range(count):
        assert chi_square(rows[:, position], cells=count) > UNLIKELY
    for other in range(1, count):
        # Of the others in the order that the first one leaves, the second is one of count - 1.
        second = (rows[:, other] - rows[:, 0]) % count - 1
        assert chi_square(rows[:, 0] * (count - 1) + second, cells=count * (count - 1)) > UNLIKELY


def chi_square(values: npt.NDArray[np.int64], *, cells: int) -> float:
    """Return the probability of counts as uneven or more, if all cells are equally likely."""
    if cells == 1:
        return 1.0
    return float(stats.chisquare(np.bincount(values, minlength=cells)).pvalue)


@pytest.mark.parametrize("kind", ["random", "quasi"])
@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_orders_of_two_epochs_or_seeds_know_nothing_of_each_other(
    kind: Kind, other: dict[str, int]
) -> None:
    """Position in one, position in the other: all 20 x 20 parts are as full."""
    count, parts = 200_000, 20
    how: dict[str, Any] = {"kind": kind, "chunk": 5, "window": 40}
    first, second = whole(count, **how), whole(count, **{**how, **other})
    places = np.empty(count, np.int64)
    places[first] = np.arange(count)
    cells = np.arange(count) * parts // count * parts + places[second] * parts // count
    counts = np.bincount(cells, minlength=parts * parts)
    # Quasi moves chunks of 5 together: its counts vary up to 5 times as much.
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum() / (
        1 if kind == "random" else 5
    )
    assert stats.chi2.sf(statistic, (parts - 1) ** 2) > UNLIKELY
    assert (first == second).sum() < 12  # 1 is expected, Poisson


def test_the_last_chunk_is_as_often_early_as_late() -> None:
    """It is shorter than the others and placed by a rule of its own."""
    order = GlobalOrder(
        count=33, batch_global=1, batch_micro=1, kind="quasi", chunk=4, window=2, seed=3
    )
    windows = [order.rank_samples(epoch)[:].tolist().index(32) // 8 for epoch in range(4000)]
    # 9 chunks in windows of 2, 2, 2, 2 and 1; no window before that of the last one is shorter.
    expected = np.array([2, 2, 2, 2, 1]) / 9 * 4000
    found = np.bincount(windows, minlength=5)
    assert stats.chisquare(found, expected).pvalue > UNLIKELY


@pytest.mark.parametrize("kind", ["random", "quasi"])
def test_a_million_of_a_billion_samples_are_distinct_and_need_no_long_array(kind: Kind) -> None:
    order = GlobalOrder(
        count=10**9 + 7, batch_global=1000, batch_micro=1000, kind=kind, chunk=80, seed=9
    )
    seen = []
    order.rank_samples(0)[:1]  # compiled or loaded
    tracemalloc.start()
    samples = order.rank_samples(3)
    assert len(samples) == 10**9
    for start in range(0, 10**9, 10**6):  # a thousand in each thousandth
        ids = samples[start : start + 1000]
        assert ids.dtype == np.int64 and tracemalloc.get_traced_memory()[1] < 2 << 20
        seen.append(ids)
        tracemalloc.reset_peak()
        tracemalloc.clear_traces()
    tracemalloc.stop()
    ids = np.concatenate(seen)
    assert len(np.unique(ids)) == 10**6 and ids.min() >= 0 and ids.max() < 10**9 + 7
    if kind == "random":
        assert chi_square(ids * 1000 // (10**9 + 7), cells=1000) > UNLIKELY


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["random", "quasi"])
def test_every_seed_of_64_bits_has_an_order(version: int, kind: Kind) -> None:
    values: dict[str, Any] = {"count": 100, "kind": kind, "chunk": 3, "window": 4}
    values |= {"batch_global": 10, "batch_micro": 10, "version": version}
    for seed in (0, 2**63, 2**64 - 1):
        ids = GlobalOrder(seed=seed, **values).rank_samples(0)[:]
        assert sorted(ids.tolist()) == list(range(100))


def test_the_mixing_is_that_of_the_other_draws() -> None:
    for word in (1, 2**63 + 12345, 2**64 - 1):
        assert int(module._mix(np.uint64(word))) == int(rng._mix(np.uint64(word)))


@pytest.mark.parametrize(
    ("version", "kind"), [(v, k) for v in VERSIONS for k in ("random", "quasi")]
)
def test_golden_orders(version: int, kind: Kind) -> None:
    """A change here changes the order of samples of every resumed run: add a version instead."""
    batches = {"batch_global": 10, "batch_micro": 5, "rank": 1, "world": 2}
    order = GlobalOrder(
        count=1000, seed=3, kind=kind, chunk=7, window=4, version=version, **batches
    )
    found = hashlib.sha256(order.rank_samples(2)[:].astype("<i8").tobytes()).hexdigest()
    assert found == GOLDEN[version, kind]


GOLDEN = {
    (1, "random"): "48e4b4ea50c7377ca9192e1a20975944308aaa7644eeea6aa41d9d7010ee43bd",
    (1, "quasi"): "0a160871d021069519e394fcde399d260b0690d054a384fd899f43b0700c4eda",
    (2, "random"): "34818b865c39bbad15165683f8ce8ddc55b4fd362b94e39eb67362a57e7afcf4",
    (2, "quasi"): "95343d27b15ae671965a0f04e9be86670c0ec30dc8e440edaead1193a0e843e8",
}
