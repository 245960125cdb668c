"""Which folders programs may replace."""

from __future__ import annotations

from pathlib import Path

import pytest

from harl_fast.errors import ConfigError, HarlError, OutputError
from harl_fast.lock import lock_beside, locked
from harl_fast.runfiles import check_folders, check_named, discard_run, making_room


@pytest.mark.parametrize("name", [".", "..", "/", "", "sub/..", "../.."])
def test_the_current_folder_and_those_above_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "a" / "b"
    (here / "sub").mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(OutputError, match=r"--out .* is the folder that this runs in"):
        check_named(Path(name), option="--out")
    with pytest.raises(OutputError, match=r"--run .* is the folder that this runs in"):
        check_folders({"--run": Path(name)}, base=here)
    check_named(Path("sub"), option="--out")
    check_named(here / "new", option="--out")


@pytest.mark.parametrize(
    ("run", "out", "told"),
    [
        ("x", "x", r"--out x lies in --run x"),
        ("x", "x/y", r"--out x/y lies in --run x"),
        ("x/y", "x", r"--run x/y lies in --out x"),
        ("x", "data", r"--out data holds the images"),
        ("x", "file", r"--out .*file is not a folder"),
    ],
)
def test_folders_that_would_take_each_others_files_are_refused(
    tmp_path: Path, run: str, out: str, told: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match=told):
        check_folders(
            {"--run": Path(run), "--out": Path(out)}, data=tmp_path / "data", base=tmp_path
        )
    assert sorted(tmp_path.iterdir()) == before
    check_folders({"--run": Path("x"), "--out": Path("y")}, data=tmp_path / "data", base=tmp_path)


def test_only_a_run_makes_room_for_the_next(tmp_path: Path) -> None:
    engine, thesis, run = (tmp_path / name for name in ("cpu.json", "thesis", "run"))
    for folder in (thesis, run):
        folder.mkdir()
        (folder / "config.yaml").touch()
    (run / "engine.json").touch()
    with pytest.raises(ConfigError, match="is not there: give a file"):
        discard_run(run, engine=engine)
    assert run.is_dir()
    engine.touch()
    for folder in (thesis, run):
        discard_run(folder, engine=engine)
    assert thesis.is_dir() and not run.exists()


def a_run(folder: Path, text: str) -> Path:
    folder.mkdir()
    for name in ("config.yaml", "engine.json", "result"):
        (folder / name).write_text(text)
    return folder


def test_a_run_comes_back_if_the_next_does_not_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, run = tmp_path / "cpu.json", a_run(tmp_path / "run", "old")
    engine.touch()
    with pytest.raises(HarlError, match="refused"), making_room(run, engine=engine):
        assert not run.exists()
        run.mkdir()
        (run / "deepspeed.log").touch()  # a start that is refused leaves no more
        raise HarlError("refused")
    assert "holds what it held before" in capsys.readouterr().err
    assert {path.name for path in run.iterdir()} == {"config.yaml", "engine.json", "result"}
    run.rename(tmp_path / ".run.before")  # as a process leaves it that is killed meanwhile
    with making_room(run, engine=engine):
        pass
    assert (run / "result").read_text() == "old"


def test_a_run_goes_when_the_next_has_begun(tmp_path: Path) -> None:
    engine, run = tmp_path / "cpu.json", a_run(tmp_path / "run", "old")
    engine.touch()
    for text in ("new", "newer"):
        with pytest.raises(HarlError, match="later"), making_room(run, engine=engine):
            a_run(run, text)
            raise HarlError("later")
        assert (run / "result").read_text() == text
        if text == "new":  # the remains of a process that was killed
            a_run(tmp_path / ".run.before", "older")
    assert {path.name for path in tmp_path.iterdir()} == {"cpu.json", "run"}
    with making_room(tmp_path / "none", engine=engine):
        pass
    assert not (tmp_path / "none").exists()


def test_what_is_no_run_is_not_deleted_for_a_run_to_come_back(tmp_path: Path) -> None:
    engine, notes = tmp_path / "cpu.json", tmp_path / "run" / "notes.txt"
    engine.touch()
    a_run(tmp_path / ".run.before", "old")  # as a process leaves it that is killed meanwhile
    notes.parent.mkdir()
    notes.touch()
    with (
        pytest.raises(OutputError, match="other files than a run's"),
        making_room(notes.parent, engine=engine),
    ):
        raise AssertionError
    assert notes.exists() and (tmp_path / ".run.before" / "result").exists()


def test_a_run_under_evaluation_is_not_replaced(tmp_path: Path) -> None:
    engine, run = tmp_path / "cpu.json", a_run(tmp_path / "run", "old")
    engine.touch()
    results = run / "eval"
    with locked(lock_beside(results), output=results):
        with pytest.raises(HarlError, match="eval is in use"), making_room(run, engine=engine):
            raise AssertionError
        with pytest.raises(HarlError, match="eval is in use"):
            discard_run(run, engine=engine)
    assert {path.name for path in run.iterdir()} == {"config.yaml", "engine.json", "result"}


def test_a_run_that_is_discarded_may_be_killed_as_it_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, run = tmp_path / "cpu.json", a_run(tmp_path / "run", "old")
    engine.touch()

    def die(folder: Path) -> None:
        (folder / "config.yaml").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", die)
        discard_run(run, engine=engine)
    discard_run(run, engine=engine)
    assert [path.name for path in tmp_path.iterdir()] == ["cpu.json"]
