"""Numbers on command lines: taken as they are written everywhere, refused with a reason."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harl_fast.options import (
    Parser,
    number,
    refuse_given,
    to_float,
    to_int,
    whole_number,
    whole_numbers,
)
from harl_fast.plan import __main__ as plan
from harl_fast.tools import compare
from launch import evidence, pretrain
from preprocess.masks import __main__ as masks


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("-3", -3), ("+12", 12), ("007", 7)])
def test_whole_numbers_are_read(text: str, value: int) -> None:
    assert to_int(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7.0), ("-0.5", -0.5), (".5", 0.5), ("5.", 5.0), ("1e-3", 1e-3)]
)
def test_numbers_are_read(text: str, value: float) -> None:
    assert to_float(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "1_0",
        " 1",
        "1 ",
        "1\n",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "",
        "-",
        "0x1",
        "one",
        "1e",
        ".",
        "\x001",
    ],
)
def test_what_only_python_reads_as_a_number_is_refused(text: str) -> None:
    for read in (to_int, to_float):
        with pytest.raises(ValueError, match="is no"):
            read(text)


@pytest.mark.parametrize("text", ["0", "11", "1_0", "1.0", "9" * 5000])
def test_whole_numbers_out_of_range_are_refused_with_their_range(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not from 1 to 10|is no whole number"):
        whole_number(1, 10)(text)


@pytest.mark.parametrize("text", ["-1", "1e400", "nan", "-inf", "1_0"])
def test_numbers_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not from 0 to 10|is no number"):
        number(0.0, 10.0)(text)


@pytest.mark.parametrize("text", ["-1024:3071", "-3", "-.5,0,1"])
def test_a_value_may_begin_with_a_minus(text: str) -> None:
    parser = Parser()
    parser.add_argument("--range")
    parser.add_argument("-v", action="store_true")
    assert parser.parse_args(["--range", text, "-v"]).range == text
    with pytest.raises(SystemExit):
        parser.parse_args(["--range", "-x"])


def test_an_option_that_belongs_elsewhere_is_refused_unless_it_says_its_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ids", type=whole_numbers(1, 9), default="1,2")
    parser.add_argument("--icc", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    names = ("ids", "icc", "overrides")
    for words in ([], ["--ids", "1,2"], ["--icc"]):
        refuse_given(parser, parser.parse_args(words), names, why="")
    for words in (["--ids", "1,3"], ["--no-icc"], ["--set", "a=1"]):
        with pytest.raises(SystemExit):
            refuse_given(parser, parser.parse_args(words), names, why="belongs to X")
        option = words[0].replace("no-", "")
        assert f"argument {option}: belongs to X" in capsys.readouterr().err


def test_all_that_is_wrong_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    read: list[str] = []

    def slow(text: str) -> str:
        read.append(text)
        return text

    parser = Parser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=whole_number(1, 9), default=3)
    parser.add_argument("--kind", choices=("a", "b"))
    parser.add_argument("--method", type=slow, default="heuristic")
    words = ["--epochs", "x", "--kind", "c", "--unheard-of"]
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    told = capsys.readouterr().err
    assert "required: --data; argument --epochs: 'x' is no whole number; argument --kind:" in told
    assert "unrecognized arguments: --unheard-of" in told and told.count("error:") == 1
    assert not read  # a default is not looked at for nothing
    with pytest.raises(SystemExit):
        parser.parse_args(["--data", "d", *words[:4]])
    assert "error: argument --epochs: 'x' is no whole number; argument" in capsys.readouterr().err
    found = parser.parse_args(["--data", "d", "--epochs", "4"])
    assert (found.epochs, found.kind, read) == (4, None, ["heuristic"])


@pytest.mark.parametrize("words", [["--out", "s3://b/x"], ["--out=file:///x"], ["gs://b/list"]])
def test_a_url_is_no_path_of_this_machine(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a result would lie in a folder called ``s3:``."""
    parser = Parser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--ray", type=str)
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert "is a URL, and this program takes files of this machine" in capsys.readouterr().err
    monkeypatch.setenv("HOME", "/home/me")
    assert parser.parse_args(["--out", "~/x", "~"]).out == Path("/home/me/x")
    found = parser.parse_args(["--out", "s3:", "a:b/c", "--ray", "ray://head:1"])
    assert (found.out, found.files, found.ray) == (Path("s3:"), [Path("a:b/c")], "ray://head:1")


@pytest.mark.parametrize(
    ("parse", "words"),
    [
        (evidence.parse, ["--data"]),
        (plan.parse, ["--measure"]),
        (pretrain.parse, ["--deepspeed_config", "x", "--config", "x", "--data", "x", "--run"]),
        (compare.parse, ["a", "b", "--out"]),
        (masks.parse, ["--data", "x", "--out"]),
    ],
)
def test_every_program_holds_to_that(
    parse: Callable[[Sequence[str]], Any], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([*words, "s3://bucket/x"])
    assert f"argument {words[-1]}: 's3://bucket/x' is a URL" in capsys.readouterr().err
