"""The counter-based draws: uniform, independent over their coordinates, and pinned."""

from __future__ import annotations

import numpy as np
from scipy import stats

from harl_fast import rng


def test_draws_are_uniform_and_uncorrelated_over_samples_and_indices() -> None:
    u = rng.uniforms(3, 5, np.arange(40_000), view=1, purpose=rng.GEOMETRY, count=3)
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    # 4 standard errors of a correlation of 40,000 pairs.
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 4 / 200
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 4 / 200


def test_each_coordinate_changes_the_stream() -> None:
    base = {"seed": 1, "epoch": 2, "samples": [3], "view": 0, "purpose": 0}
    changes = [{}, {"seed": 2}, {"epoch": 3}, {"samples": [4]}, {"view": 1}, {"purpose": 1}]
    seen = set()
    for change in changes:
        at = {**base, **change}
        draws = rng.uniforms(
            at["seed"], at["epoch"], at["samples"], view=at["view"], purpose=at["purpose"], count=4
        )
        seen.add(draws.tobytes())
    assert len(seen) == len(changes)


def test_draws_do_not_depend_on_their_company() -> None:
    many = rng.uniforms(0, 0, np.arange(100), view=0, purpose=0, count=5)
    one = rng.uniforms(0, 0, [42], view=0, purpose=0, count=2)
    assert np.array_equal(many[42, :2], one[0])


def test_golden_values() -> None:
    """A change here changes every crop of every resumed run."""
    assert int(rng.stream(1, 2, 3, 4, 5)) == GOLDEN_KEY
    assert rng.uniforms(1, 2, [3], view=4, purpose=5, count=1)[0, 0] == GOLDEN_DRAW


def test_seeds_of_64_bits_are_taken_after_small_ones() -> None:
    """Of any integer type; compiled code is chosen by the types that come first."""
    for seed in (5, 2**63, 2**64 - 1):
        key = int(rng.stream(seed, 2, 3, 4, rng.GEOMETRY))
        draws = rng.uniforms(seed, 2, [3], view=4, purpose=rng.GEOMETRY, count=1)
        assert key == int(rng.stream(np.uint64(seed), 2, np.int64(3), 4, rng.GEOMETRY))
        assert draws[0, 0] == rng.uniform(np.uint64(key), 0)
        assert len(rng.permutation(seed, 0, 10)) == 10


def test_permutations_are_whole_and_differ_by_epoch() -> None:
    first, second = rng.permutation(0, 0, 1000), rng.permutation(0, 1, 1000)
    assert sorted(first) == list(range(1000)) == sorted(second)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, rng.permutation(0, 0, 1000))


GOLDEN_KEY = 5155427280101208311
GOLDEN_DRAW = 0.6216227772362646
