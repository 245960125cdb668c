"""Ranks work together only on the same things; all hear of it if one is refused or left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import harl_fast
from harl_fast import __version__
from harl_fast.config import override_config
from harl_fast.engine.meeting import check_alike, code_sha256
from harl_fast.engine.resume import settings_sha256
from harl_fast.errors import ConfigError
from tests.engine.support import tiny_config
from tests.launch.jobs import Result, run

JOB = Path(__file__).with_name("alike_job.py")


def test_an_editors_lock_is_no_file_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text("pass")
    monkeypatch.setattr(harl_fast, "__file__", str(tmp_path / "__init__.py"))
    before = code_sha256.__wrapped__()
    (tmp_path / ".#a.py").symlink_to("someone@host.1")
    assert code_sha256.__wrapped__() == before


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alike")


@pytest.fixture(scope="module")
def done(out: Path) -> Result:
    result = run([sys.executable, JOB, out], log=out / "log")
    assert result.code == 0, result.text
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["training sets", "configurations", "engine files", "pretrained networks", "networks"],
)
def test_ranks_that_find_different_things_do_not_start(done: Result, out: Path, name: str) -> None:
    assert done.lines(f"{name} [2, 2]"), done.text
    said = (out / name).read_text()
    assert f"error: the ranks have different {name}: rank 0 " in said, said
    assert "Traceback" not in said and not list(out.glob("*/metrics.jsonl"))
    assert not (out / "lineval.json").exists()


@pytest.mark.slow
def test_outputs_that_are_in_use_are_told_of_to_all_ranks(done: Result, out: Path) -> None:
    assert done.lines("lock [2, 2]"), done.text
    said = (out / "lock").read_text()
    assert "lineval.json is in use by process" in said and "see its message" in said, said


@pytest.mark.slow
def test_a_rank_without_its_launcher_leaves(done: Result, out: Path) -> None:
    assert done.lines("launcher [130]"), done.text
    said = (out / "launcher").read_text()
    assert "error: its launcher (process 0) is gone" in said and "interrupted" in said, said
    assert not list(out.glob("**/.*.lock"))


def test_the_first_rank_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def gathered(texts: list[str], *, width: int) -> list[list[str]]:
        seen.append(texts)
        theirs = [*texts[:-1], "other"]
        return [[text[:width] for text in each] for each in (texts, texts, theirs)]

    monkeypatch.setattr("harl_fast.collectives.gather_texts", gathered)
    with pytest.raises(ConfigError, match="different b: rank 0 none, rank 2 other"):
        check_alike({"a": "f" * 64, "b": ""})
    monkeypatch.undo()
    assert seen == [[__version__, code_sha256(), "f" * 64, ""]]


def test_machines_may_differ_in_how_much_they_do_at_once(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    digests = [
        settings_sha256(override_config(config, [change]))
        for change in ("data.workers=7", "data.batches_ahead=5", "log.every_steps=77", "seed=9")
    ]
    own = settings_sha256(config)
    assert [digest == own for digest in digests] == [True, True, False, False]
