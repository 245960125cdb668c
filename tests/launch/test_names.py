"""Names of files and folders: whatever they hold, programs answer in one line that prints."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from harl_fast.program import run_main

NASTY = "a\x1b[31m\nb\rc\u202ed\udcffe\x9bä"
PROGRAMS: dict[str, list[str]] = {
    "launch.lineval": ["--ckpt", NASTY, "--data", NASTY],
    "launch.pretrain": [
        "--config",
        "demo",
        "--deepspeed_config",
        NASTY,
        "--data",
        NASTY,
        "--run",
        NASTY,
    ],
    "preprocess.beton": ["--data", NASTY, "--out", "x"],
    "preprocess.masks.__main__": ["--data", NASTY, "--out", "x"],
    "preprocess.masks.selftrained.train": ["--data", NASTY, "--out", "x.safetensors"],
    "preprocess.preview": [NASTY],
    "preprocess.verify": [NASTY],
    "harl_fast.doctor": ["--data", NASTY],
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("there", [False, True], ids=["missing", "there"])
def test_a_name_of_any_bytes_is_escaped(
    program: str,
    there: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if there and program == "harl_fast.doctor":
        pytest.skip("it would examine the machine")
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    if there:
        (tmp_path / NASTY).write_text("{}")
    main = importlib.import_module(program).main
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: main(PROGRAMS[program]))
    assert ended.value.code == 2
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert r"a\x1b[31m" in printed
    assert "Traceback" not in printed
    assert not [c for c in printed if not c.isprintable() and c != "\n"]
    lines = captured.err.splitlines() or captured.out.splitlines()
    assert len(lines) == 1
