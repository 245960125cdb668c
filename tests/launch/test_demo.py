"""`make demo`: which commands it runs, in which order, and what it keeps and replaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harl_fast import steps
from harl_fast.demoset import IMAGES, SIDE_PX, set_name
from harl_fast.errors import ConfigError, DataError, HarlError, OutputError
from harl_fast.lock import lock_beside, locked
from launch import demo

Commands = list[list[str]]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Return the list of the commands that the demo runs from now on, none of which does run."""
    found: Commands = []
    monkeypatch.setattr(demo, "run", lambda *words: found.append([str(word) for word in words]))
    return found


def options(tmp_path: Path, *more: str) -> list[str]:
    return ["--data", str(tmp_path / "set"), "--run", str(tmp_path / "run"), *more]


def settings(command: list[str]) -> list[str]:
    """Return what a command sets, without its run folder."""
    place = command.index("--run")
    return command[:place] + command[place + 2 :]


def test_both_runs_differ_in_the_masks_alone(commands: Commands, tmp_path: Path) -> None:
    assert demo.main(options(tmp_path)) == 0
    beton, without, masked, preview, report = commands
    assert beton[:2] == ["-m", "preprocess.beton"]
    assert beton[beton.index("--demo-images") + 1] == str(IMAGES)
    assert "launch/pretrain.py" in masked and "demo" in masked
    assert masked[masked.index("--run") + 1] == str(tmp_path / "run")
    assert without[without.index("--run") + 1] == str(tmp_path / "run-byol")
    changes = [word for each in demo.WITHOUT_MASKS for word in ("--set", each)]
    assert settings(without) == settings(masked) + changes and "loss.type=byol" in changes
    assert preview[:2] == ["-m", "preprocess.preview"]
    assert report[:2] == ["-m", "harl_fast.tools.demo_report"]
    said = dict(zip(report[2::2], report[3::2], strict=True))
    assert said["--without"] == str(tmp_path / "run-byol") and said["--with"] == said["--out"]


def test_fewer_epochs_than_the_warm_up_needs_are_refused_before_anything_is_drawn(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        demo.main(options(tmp_path, "--epochs", "1"))
    assert "argument --epochs" in capsys.readouterr().err and not commands


def test_quick_and_epochs_reach_both_runs(commands: Commands, tmp_path: Path) -> None:
    demo.main(options(tmp_path, "--quick"))
    demo.main(options(tmp_path, "--epochs", "7", "--images", "500"))
    quick, longer = commands[:5], commands[5:]
    for command in quick[1:3]:
        assert command[command.index("--epochs") + 1] == "2"
    assert quick[0][quick[0].index("--demo-images") + 1] == str(demo.QUICK_IMAGES)
    assert longer[0][longer[0].index("--demo-images") + 1] == "500"
    for command in longer[1:3]:
        assert command[command.index("--epochs") + 1] == "7"


def test_quick_has_folders_of_its_own() -> None:
    for words, name in (([], "demo"), (["--quick"], "demo-quick")):
        args = demo.parse(words)
        assert (args.data, args.run) == (Path("data") / name, Path("runs") / name)


@pytest.mark.parametrize(("source", "kept"), [("this", True), ("generated, seed 0", False)])
def test_this_set_is_kept_and_an_older_one_drawn_anew(
    source: str, kept: bool, commands: Commands, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    source = set_name(IMAGES, SIDE_PX, seed=0) if source == "this" else source
    for split in ("train", "val"):
        (tmp_path / "set" / f"{split}.json").write_text(json.dumps({"source": source}))
    demo.main(options(tmp_path))
    assert (commands[0][1] != "preprocess.beton") == kept and len(commands) == 5 - kept


def test_other_images_are_refused_before_anything_is_done(
    commands: Commands, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    for split in ("train", "val"):
        (tmp_path / "set" / f"{split}.json").write_text('{"source": "photos"}')
    with pytest.raises(DataError, match="give another folder"):
        demo.main(options(tmp_path))
    assert not commands


def test_the_folder_of_either_run_is_tried_first(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "run-byol").touch()
    with pytest.raises(OutputError, match="run-byol is not a folder"):
        demo.main(options(tmp_path))
    assert not commands


@pytest.mark.parametrize("name", ["run", "run-byol"])
def test_what_stands_in_the_way_of_either_run_is_told_before_anything_is_done(
    name: str, commands: Commands, tmp_path: Path
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").touch()
    with pytest.raises(OutputError, match=f"{name} holds other files than a run's"):
        demo.main(options(tmp_path))
    (tmp_path / name / "notes.txt").unlink()
    with pytest.raises(ConfigError, match=r"no\.json is not there"):
        demo.main(options(tmp_path, "--engine", "no.json"))
    with (
        locked(lock_beside(tmp_path / name), output=tmp_path / name),
        pytest.raises(HarlError, match=f"{name} is in use by process"),
    ):
        demo.main(options(tmp_path))
    assert not commands


def test_no_second_demo_takes_the_runs_away_before_they_are_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused = []

    def second(*command: str | Path) -> None:
        with pytest.raises(HarlError) as caught:
            demo.main(options(tmp_path))
        refused.append(str(caught.value))

    monkeypatch.setattr(demo, "run", second)
    demo.main(options(tmp_path))
    assert len(refused) == 5 and all("run-byol is in use by process" in text for text in refused)


def test_too_few_images_for_all_pairs_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.parse(["--images", "399"])
    assert "--images: 399 is not from 400" in capsys.readouterr().err


def test_a_command_that_fails_ends_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "run_below", lambda *_, **__: 3)
    with pytest.raises(HarlError, match="exit code 3"):
        steps.run("launch/x.py", Path("a b"))
    assert "$ launch/x.py a b" in capsys.readouterr().out
