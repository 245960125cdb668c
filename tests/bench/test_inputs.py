"""Input sets of the benchmark are not taken for one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import inputs


def test_a_set_is_named_by_its_folders_whole_path(tmp_path: Path, monkeypatch) -> None:
    names = {inputs.set_name(tmp_path / part / "photos", 300) for part in ("a", "b")}
    assert len(names | {inputs.set_name(None, 300)}) == 3
    monkeypatch.chdir(tmp_path)
    assert inputs.set_name(Path("a/photos"), 300) in names
    assert inputs.set_name(Path("a/photos"), 301) not in names


@pytest.mark.parametrize("name", ["checksum", "manifest", "fields", "jpeg", "integrity"])
def test_a_container_is_written_again_when_its_layout_changes(
    name: str, tmp_path: Path, monkeypatch
) -> None:
    before = inputs._converter_version()
    changed = tmp_path / "changed.py"
    module = getattr(inputs, name)
    changed.write_bytes(Path(module.__file__).read_bytes() + b"\n")
    monkeypatch.setattr(module, "__file__", str(changed))
    assert inputs._converter_version() != before
