"""The simulated set of the opening benchmark is one that opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import open_set


def test_a_simulated_set_opens_and_has_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_set, "SHARD", 700)
    sets = [open_set.make_set(tmp_path / str(count), count) for count in (1600, 100)]
    found = open_set.measure(*sets)
    assert (found["samples"], found["shards"]) == (1600, 3)
    assert str(found["last"]).endswith("/1599.JPEG")
