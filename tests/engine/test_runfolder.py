"""When a run folder may be used, and what a resumed run may change."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

import pytest

import harl_fast
from harl_fast.config import load_config
from harl_fast.engine.resume import refuse_changes, settings
from harl_fast.engine.runfolder import (
    RunFolder,
    begin,
    json_lines,
    mark,
    open_run_folder,
    run_config,
    write_configs,
)
from harl_fast.engine.stop import process_age_s
from harl_fast.errors import CheckpointError, ConfigError
from harl_fast.provenance import note_start, read_provenance
from tests.engine.support import engine_config, tiny_config, tiny_file


def started(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    write_configs(folder, tiny_config(tmp_path), engine_config())
    return folder


def test_a_folder_in_use_is_refused_with_both_remedies(tmp_path: Path) -> None:
    folder = started(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        open_run_folder(folder.path, resume=False)
    assert "--resume" in str(caught.value)
    assert f"--init-from {folder.path}" in str(caught.value)
    assert open_run_folder(folder.path, resume=True) == folder


def test_new_and_empty_folders_are_free(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        assert open_run_folder(tmp_path / name, resume=False).path == tmp_path / name
    assert not (tmp_path / "new").exists()


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        open_run_folder(tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="is a file"):
        open_run_folder(tiny_file(tmp_path), resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_files_is_never_told_to_go_on(tmp_path: Path, resume: bool) -> None:
    """Such as that of the containers, or a run's checkpoints folder."""
    (tmp_path / "train.beton").touch()
    with pytest.raises(CheckpointError, match=r"holds no run.*give --run a folder of its own$"):
        open_run_folder(tmp_path, resume=resume)


def test_a_resumed_run_keeps_its_configuration(tmp_path: Path) -> None:
    folder = started(tmp_path)
    assert run_config(folder, name=None, overrides=[], resume=True) == tiny_config(tmp_path)
    free = ["log.every_steps=7", "data.workers=3"]
    changed = run_config(folder, name=None, overrides=free, resume=True)
    assert (changed.log.every_steps, changed.data.workers) == (7, 3)
    path, as_begun = str(tiny_file(tmp_path)), ["data.colour=device"]
    same = run_config(folder, name=path, overrides=as_begun, resume=True)
    assert same == tiny_config(tmp_path)


def test_a_resumed_run_refuses_another_method(tmp_path: Path) -> None:
    folder = started(tmp_path)
    asked = ["optim.lr=0.7", "data.views.1.size_px=64", "epochs=9"]
    before, now = (
        settings(run_config(folder, name=None, overrides=overrides, resume=True))
        for overrides in ([], asked)
    )
    with pytest.raises(ConfigError) as caught:
        refuse_changes(before, now, allowed=[], where="here")
    for change in ("optim.lr 2.0 -> 0.7", "data.views.1.size_px 32 -> 64", "epochs 2 -> 9"):
        assert change in str(caught.value)
    assert "--init-from" in str(caught.value)


def test_a_new_run_needs_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config is missing"):
        run_config(RunFolder(tmp_path), name=None, overrides=[], resume=False)


def test_both_resolved_files_are_written(tmp_path: Path) -> None:
    folder = started(tmp_path)
    assert load_config(str(folder.config)) == tiny_config(tmp_path)
    engine = json.loads(folder.engine.read_text())
    assert engine["gradient_accumulation_steps"] == 1


def test_metrics_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    lines = [json.dumps({"step": step}) + "\n" for step in (2, 4, 6)]
    folder.metrics.write_text("".join(lines) + '{"step": 8, "lo')
    begin(folder, step=4)
    assert folder.metrics.read_text() == "".join(lines[:2])
    begin(RunFolder(tmp_path / "none"), step=0)


def test_what_a_killed_start_leaves_is_no_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    for name in ("deepspeed.log", "engine.json", "provenance.json", ".config.yaml.17.tmp"):
        (folder.path / name).write_text("{}")
    assert open_run_folder(folder.path, resume=False) == folder
    with pytest.raises(CheckpointError, match="holds no run"):
        open_run_folder(folder.path, resume=True)
    (folder.path / "notes.txt").write_text("not ours")
    with pytest.raises(CheckpointError, match="not empty"):
        open_run_folder(folder.path, resume=False)


def test_a_start_takes_the_markers_away(tmp_path: Path) -> None:
    folder = started(tmp_path)
    for marker in (folder.finished, folder.preempted):
        mark(marker, step=7, reason="why")
        assert json.loads(marker.read_text()).items() >= {"step": 7, "reason": "why"}.items()
    begin(folder, step=0)
    assert not folder.finished.exists() and not folder.preempted.exists()


def test_a_wish_to_stop_counts_for_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an earlier one did not see is dropped; what came during the start is not."""
    folder = started(tmp_path)
    folder.stop.touch()
    begin(folder, step=0)
    assert folder.stop.exists()
    mark(folder.preempted, step=7, reason="the file stop")
    assert not folder.stop.exists()
    folder.stop.touch()
    long_ago = time.time() - process_age_s() - 60.0
    os.utime(folder.stop, (long_ago, long_ago))
    assert "older" not in capsys.readouterr().err
    begin(folder, step=0)
    assert not folder.stop.exists()
    assert "stop is older than this start" in capsys.readouterr().err


def test_each_start_is_noted_with_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, manifest = tmp_path / "run" / "provenance.json", tmp_path / "train.json"
    manifest.write_bytes(b"a manifest")
    monkeypatch.setattr("sys.argv", ["pretrain.py", "--run", "here"])
    for step, source in ((0, Path("older")), (12, None)):
        note_start(
            path,
            run_id="0a1b",
            manifest=manifest,
            data={"count": 5},
            step=step,
            ranks=2,
            source=source,
        )
    found = json.loads(path.read_text())
    assert found["data"]["manifest_sha256"] == hashlib.sha256(b"a manifest").hexdigest()
    assert found["data"]["count"] == 5 and found["run_id"] == "0a1b"
    assert [(at["step"], at["init_from"]) for at in found["starts"]] == [(0, "older"), (12, None)]
    (_, last) = found["starts"]
    assert last["command"] == ["pretrain.py", "--run", "here"] and last["ranks"] == 2
    assert last["torch"] == importlib.metadata.version("torch")
    assert last["python"] == ".".join(map(str, sys.version_info[:3]))
    assert last["code"].startswith(harl_fast.__version__) and last["pid"] == os.getpid()


def test_a_start_removes_what_a_killed_process_was_writing(tmp_path: Path) -> None:
    folder = started(tmp_path)
    (folder.path / "sheets").mkdir()
    mine = folder.path / "notes.tmp"
    for path in (folder.path / ".config.yaml.7.tmp", folder.path / "sheets/.e.png.7.tmp", mine):
        path.touch()
    begin(folder, step=0)
    assert list(folder.path.rglob("*.tmp")) == [mine]


def test_names_that_are_not_utf8_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / os.fsdecode(b"caf\xe9")
    data.mkdir()
    (data / "train.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--data", str(data)])
    path = tmp_path / "provenance.json"
    for step in (0, 3):
        note_start(
            path,
            run_id="1",
            manifest=data / "train.json",
            data={},
            step=step,
            ranks=1,
            source=data,
        )
    known = read_provenance(path)
    assert [(each.step, each.init_from) for each in known.starts] == [
        (0, str(data)),
        (3, str(data)),
    ]
    assert known.data["manifest"] == str(data / "train.json")


@pytest.mark.parametrize("last", ["finished", "preempted"])
def test_a_run_has_one_marker(tmp_path: Path, last: str) -> None:
    names = ["finished", "preempted"]
    for name in [*(name for name in names if name != last), last]:
        mark(tmp_path / name, step=3, reason="x")
    assert [path.name for path in tmp_path.iterdir()] == [last]


def test_a_number_of_any_length_in_a_log_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 12, "probe_knn": %s}\n' % ("9" * 5000))
    (record,) = json_lines(path)
    assert record["step"] == 12 and f"{record['probe_knn']:,.1f}" == "inf"
