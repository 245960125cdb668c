"""A result says where it comes from, and no result of other provenance is lost under it."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from harl_fast.errors import explain
from harl_fast.results import write_result


def write(path: Path, value: int, *, name: str = "cifar10-step-2", **provenance: object) -> None:
    write_result(path, {"value": value}, provenance=provenance, name=name)


def value(path: Path) -> int:
    found: int = json.loads(path.read_text())["value"]
    return found


def test_a_result_holds_its_provenance_name_and_time(tmp_path: Path) -> None:
    write(tmp_path / "new" / "result.json", 1, data={"sha": "ab"}, sizes=(1, 2))
    found = json.loads((tmp_path / "new" / "result.json").read_text())
    assert list(found) == ["name", "time", "provenance", "value"]
    assert found["provenance"] == {"data": {"sha": "ab"}, "sizes": [1, 2]}
    assert found["time"].endswith("+00:00")


def test_the_same_result_again_replaces_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    for number in (1, 2):
        write(path, number, data="a", sizes=(1, 2))
    assert value(path) == 2 and list(tmp_path.iterdir()) == [path]
    assert capsys.readouterr().out == ""


def test_results_of_other_provenance_are_kept_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    write(path, 1, data="a", seed=0)
    write(path, 2, data="b", seed=0)
    kept = tmp_path / "result-cifar10-step-2.json"
    assert capsys.readouterr().out == f"note: {path} was of other data; kept as {kept}\n"
    write(path, 3, data="b", seed=1, name="../../odd \n name")
    write(path, 4, data="c", seed=2)
    assert f"was of other data, seed; kept as {tmp_path / 'result-.._.._odd_name.json'}" in (
        capsys.readouterr().out
    )
    values = {file.name: value(file) for file in tmp_path.iterdir()}
    assert values == {
        "result.json": 4,
        "result-cifar10-step-2.json": 1,
        "result-cifar10-step-2-2.json": 2,
        "result-.._.._odd_name.json": 3,
    }


@pytest.mark.parametrize("text", ["", "no JSON", "[1]", '{"pretrained": {}}', "[" * 100_000])
def test_a_file_that_says_nothing_of_its_provenance_is_kept(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results were once written without."""
    path = tmp_path / "lineval.json"
    path.write_text(text)
    write(path, 1, data="a")
    assert (tmp_path / "lineval-older.json").read_text() == text and value(path) == 1
    assert "was of unknown provenance; kept as" in capsys.readouterr().out


def test_names_that_are_no_text_read_back_as_the_same_names(tmp_path: Path) -> None:
    write(tmp_path / "result.json", 1, data="set\udcff")
    found = json.loads((tmp_path / "result.json").read_bytes())
    assert found["provenance"]["data"] == "set\udcff"


def test_an_older_result_that_cannot_be_kept_leaves_no_half_of_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"name": "old", "provenance": {"seed": 1}, "rest": "x" * 9000}))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_result(path, {}, provenance={"seed": 2}, name="new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_a_pipe_in_the_place_of_a_result_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    os.mkfifo(path)
    with pytest.raises(OSError) as caught:
        write_result(path, {}, provenance={}, name="x")
    assert explain(caught.value).startswith(f"{path}: a named pipe, not a regular file.")
