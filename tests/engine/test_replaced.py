"""Containers that are replaced while a network trains do not judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harl_fast.engine import judge
from harl_fast.errors import DataError
from tests.betons import write_beton
from tests.engine.tuning import result_of, tinted_item, tune, write_sets


@pytest.mark.usefixtures("machine")
def test_a_new_container_under_the_old_name_is_refused_and_the_run_is_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets, folder, plain = write_sets(tmp_path / "sets"), tmp_path / "run", judge.judge
    old = {path.name: path.read_bytes() for path in sets.iterdir()}

    def replaced(*values: Any, **named: Any) -> Any:
        write_beton(sets / "val.beton", lambda index: tinted_item(5000 + index), count=40)
        return plain(*values, **named)

    monkeypatch.setattr(judge, "judge", replaced)
    flags = {"train_epochs": 1}
    with pytest.raises(DataError, match=r"val\.beton was replaced while .* --resume --mode eval"):
        tune(folder, ckpt=run, data=sets, flags=flags)
    assert not list(folder.glob("eval/*/result.json"))
    monkeypatch.setattr(judge, "judge", plain)
    for name, content in old.items():
        (sets / name).write_bytes(content)
    assert tune(folder, ckpt=run, data=sets, resume=True, mode="eval", flags=flags) == 0
    assert result_of(folder)["data"]["val_count"] == 40
