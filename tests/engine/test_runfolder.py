"""When a run folder may be used, and what a resumed run may change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harl_fast.config import load_config
from harl_fast.engine.runfolder import (
    RunFolder,
    begin,
    open_run_folder,
    run_config,
    write_configs,
)
from harl_fast.errors import CheckpointError, ConfigError
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
    with pytest.raises(ConfigError) as caught:
        run_config(folder, name=None, overrides=asked, resume=True)
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
