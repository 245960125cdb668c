"""Every file of a run folder broken in every way: one line of error, or a rule that is told."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harl_fast.engine.machine import Machine
from harl_fast.engine.pretrain import note_beginning
from harl_fast.engine.runfolder import open_run_folder
from harl_fast.engine.start import decide
from harl_fast.errors import HarlError
from tests.engine.runs import FIRST, LAST, ask, copy, train
from tests.engine.support import engine_config
from tests.full import FullStream

FILES = (
    "config.yaml",
    "engine.json",
    "provenance.json",
    "metrics.jsonl",
    "skipped.jsonl",
    "run.json",
    "finished",
    "preempted",
    "checkpoints/latest",
    f"checkpoints/{LAST}.json",
    f"checkpoints/{LAST}.safetensors",
)
READ = {"config.yaml", "provenance.json", *(name for name in FILES if LAST in name)}
"""Those without which a run cannot go on as it was, or might not; of the others the run goes on."""


def other_types(content: bytes) -> bytes:
    """Return JSON of the same keys whose values all have another type."""
    try:
        tree = json.loads(content)
        return json.dumps({key: [[None]] for key in tree}).encode()
    except (ValueError, TypeError):
        return b"[[null]]"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "binary": lambda content: bytes(range(256)) * 4,
    "zeros": lambda content: bytes(len(content) + 1),
    "a list": lambda content: b"[1, 2]\n",
    "a number": lambda content: b"7\n",
    "null": lambda content: b"null\n",
    "no keys": lambda content: b"{}\n",
    "other types": other_types,
    "many digits": lambda content: b'{"step": 1, "epochs": ' + b"9" * 5000 + b"}",
    "infinite": lambda content: b'{"step": 1e999, "run_id": 1e999, "epochs": 1e999}',
    "not a number": lambda content: b'{"step": NaN, "run_id": NaN, "epochs": .nan}',
    "deep": lambda content: b"[" * 100_000,
    "deep keys": lambda content: b'{"a":' * 100_000,
    "control characters": lambda content: b'{"\\u001b[2J\\u0007": "\\u001b[2J"}',
    "long key": lambda content: b'{"' + b"k" * 100_000 + b'": 1}',
}


UNKNOWN_KEYS = ("no keys", "long key", "control characters")
"""Damages by which only keys are lost or added that nobody reads."""


@pytest.fixture(scope="module")
def run(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run; tests change copies of it."""
    folder = tmp_path_factory.mktemp("finished")
    train(folder / "run", machine, config=folder)
    shutil.copy(folder / "run" / "metrics.jsonl", folder / "run" / "skipped.jsonl")
    shutil.copy(folder / "run" / "engine.json", folder / "run" / "finished")
    shutil.copy(folder / "run" / "engine.json", folder / "run" / "preempted")
    return folder / "run"


def outcome(folder: Path) -> str:
    """Return the error of all that resuming reads and writes before it trains, or nothing."""
    try:
        opened = open_run_folder(folder, resume=True)
        begun = decide(opened, engine_config(), ask())
        facts = {"beton_sha256": "0" * 64}  # as `FakeLoader` says
        note_beginning(begun, facts, ranks=1, manifest=folder / "train.json")
    except HarlError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_or_not_needed(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: str,
) -> None:
    folder = copy(run, tmp_path)
    path = folder / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    told = outcome(folder)
    if name not in READ or (name == "provenance.json" and damage in UNKNOWN_KEYS):
        assert told == ""
    else:
        assert path.name in told and len(told) < 2500
        for remedy in ("Another one", "delete", "away", "--allow-change", "use "):
            if remedy in told.lower() or remedy in told:
                break
        else:
            raise AssertionError(f"no remedy: {told}")
    if name != "config.yaml":  # a list of mistakes there
        assert told.isprintable()
    assert capsys.readouterr().err.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_no_traceback(run: Path, tmp_path: Path, name: str) -> None:
    folder = copy(run, tmp_path)
    (folder / name).unlink()
    (folder / name).mkdir()
    told = outcome(folder)
    assert told == "" or "\n" not in told


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [*FILES, f"checkpoints/{FIRST}.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(run: Path, tmp_path: Path, name: str) -> None:
    folder = copy(run, tmp_path)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    told = outcome(folder)
    assert (Path(name).name in told) == (name in READ) and "\n" not in told


@pytest.mark.timeout(60)
def test_pipes_beside_lost_checkpoints_tell_nothing(run: Path, tmp_path: Path) -> None:
    folder = copy(run, tmp_path)
    shutil.rmtree(folder / "checkpoints")
    for name in ("run.json", "finished", "preempted", "metrics.jsonl"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    assert outcome(folder) == ""


@pytest.mark.parametrize("name", ["metrics.jsonl", "skipped.jsonl"])
def test_lines_that_are_no_records_are_left_out_and_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = copy(run, tmp_path)
    path = folder / name
    before = path.read_bytes()
    first, *rest = before.splitlines(keepends=True)
    path.write_bytes(first + b"\xff\xfe\n[]\n" + b"".join(rest) + b'{"step": 3')
    assert outcome(folder) == ""
    assert path.read_bytes() == before
    assert f"{path}: 2 lines that are no records" in capsys.readouterr().err


def test_a_full_disk_of_the_log_stops_no_start(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(run, tmp_path)
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write(b"[]\n[]\n")
    monkeypatch.setattr("sys.stderr", FullStream())
    assert outcome(folder) == ""
