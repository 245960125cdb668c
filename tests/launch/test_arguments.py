"""Numbers on command lines: each has a range, and what is outside it is a usage error."""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

PROGRAMS: dict[str, list[str]] = {
    "launch.lineval": ["--ckpt", "x", "--data", "x"],
    "harl_fast.tools.rescale": ["--ckpt", "x"],
    "launch.pretrain": ["--deepspeed_config", "x", "--config", "x", "--data", "x", "--run", "x"],
    "launch.demo": [],
    "preprocess.beton": ["--out", "x"],
    "preprocess.masks.__main__": ["--data", "x", "--out", "x"],
    "preprocess.masks.selftrained.train": ["--data", "x", "--out", "x.safetensors"],
    "preprocess.preview": ["x"],
    "preprocess.verify": ["x"],
    "benchmarks.loader": [],
    "benchmarks.masks": [],
    "benchmarks.mask_storage": [],
    "benchmarks.step": [],
}
HOSTILE = ["-1000000", "nan", "inf", "1e999", "x", "", "\x1b", "9" * 5000, "1" + "0" * 18]


class Caught(Exception):
    """Carries the parser out of a program."""


def parser_of(program: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """Return a program's parser just before it parses; nothing of the program runs."""

    def caught(self: argparse.ArgumentParser, args: Sequence[str] | None = None) -> Any:
        raise Caught(self)

    module = importlib.import_module(program)
    enter: Callable[[list[str]], Any] = getattr(module, "parse", module.main)
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", caught)
        with pytest.raises(Caught) as found:
            enter([])
    parser = found.value.args[0]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def reads_numbers(kind: Any) -> bool:
    """Return whether an option's type turns some text into a number."""
    for text in ("0.5", "1", "8", "64"):
        with contextlib.suppress(argparse.ArgumentTypeError, TypeError, ValueError):
            if isinstance(kind(text), int | float):
                return True
    return False


@pytest.mark.parametrize("program", ["launch.pretrain", "launch.finetune"])
def test_training_without_broken_containers_is_an_option(program: str) -> None:
    parse = importlib.import_module(program).parse
    words = ["--deepspeed_config", "x", "--data", "x", "--run", "x", "--set", "seed=1", "--resume"]
    assert parse(words).set == ["seed=1"]
    assert parse([*words, "--skip-broken"]).set == ["seed=1", "data.skip_broken=true"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_number_of_a_command_line_is_checked(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(program, monkeypatch)
    checked = 0
    for action in parser._actions:
        assert action.type not in (int, float), action.option_strings
        assert action.type is not None or not isinstance(action.default, int | float) or (
            action.nargs == 0  # switches
        ), action.option_strings  # fmt: skip
        if not reads_numbers(action.type):
            continue
        checked += 1
        for text in HOSTILE:
            with pytest.raises(SystemExit) as ended:
                parser.parse_args([*PROGRAMS[program], f"{action.option_strings[0]}={text}"])
            assert ended.value.code == 2
            message = capsys.readouterr().err.splitlines()[-1]
            assert action.option_strings[0] in message
            assert message.isprintable()
            assert len(message) < 300
    assert checked or program == "launch.guard"


@pytest.mark.parametrize(
    ("program", "flag", "texts"),
    [
        ("launch.lineval", "--epochs", ["0", "-1"]),
        ("launch.lineval", "--batch", ["0", "-3"]),
        ("launch.lineval", "--size-px", ["0", "7", "1025"]),
        ("harl_fast.tools.rescale", "--std", ["0", "1.1"]),
        ("launch.pretrain", "--time-limit", ["nan", "-1", "0", "1:2", "x" * 500, "inf"]),
        ("preprocess.preview", "--ids", ["3,x", "-1", "9" * 5000, "²"]),
        ("preprocess.masks.__main__", "--shard", ["0/2", "3/2", "²/3", "9" * 5000 + "/1", "1"]),
        ("preprocess.beton", "--store", ["mix:nan", "mix:0", "mix:x", "\x1b", "x" * 5000]),
        ("preprocess.beton", "--mask-method", ["heuristic:rounds=1000000000", "noise:nan"]),
        ("preprocess.beton", "--mask-method", ["center:sigma=inf", "onnx:x,mean=inf", "x" * 9999]),
        ("preprocess.beton", "--mask-method", ["shuffled:" + "base=shuffled:" * 1000]),
    ],
)
def test_values_that_cannot_be_used_are_usage_errors(
    program: str,
    flag: str,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = parser_of(program, monkeypatch)
    for text in texts:
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([*PROGRAMS[program], f"{flag}={text}"])
        assert ended.value.code == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert f"argument {flag}" in message
        assert "invalid" not in message  # argparse's own word for a type that does not say why
        assert message.isprintable()
        assert len(message) < 400
