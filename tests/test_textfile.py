"""Text files from outside: read under limits, and every mistake is one line with the file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from harl_fast.errors import ConfigError, DataError
from harl_fast.textfile import (
    DEEPEST,
    MOST_BYTES,
    dump_yaml,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    read_yaml,
)

TREES = {
    "a key twice": (b"a: 1\nb: 2\na: 3\n", "'a' stands twice, in lines 1 and 3"),
    "an inner key twice": (b"a:\n  b: 1\n  b: 2\n", "'b' stands twice, in lines 2 and 3"),
    "aliases": (b"a: &a [x, x]\nb: [*a, *a]\n", "line 1, column 4"),
    "a tag": (b"a: !!timestamp 2024-99-99\n", "write the value out"),
    "an object": (b"a: !!python/object:os.system {}\n", "write the value out"),
    "nested lists": (b"a: " + b"[" * 5000 + b"]" * 5000, "levels deep"),
    "5,000 digits": (b"a: " + b"9" * 5000, "5,000 digits"),
    "infinity": (b"a: {b: [1, .inf]}\n", "a.b.1: inf is not finite"),
    "no such character": (b'"\\UFFFFFFFF": 1\n', "not valid YAML"),
    "no mapping": (b"- a\n", "holds a list"),
    "nothing": (b"", "holds nothing"),
    "null": (b"null\n", "holds nothing"),
    "two documents": (b"a: 1\n---\nb: 1\n", "another document"),
    "an unhashable key": (b"[a]: 1\n", "unhashable"),
    "a tab": (b"a:\n\tb: 1\n", "line 2"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "save it as UTF-8"),
    "Latin-1": ("b: 1\na: ä\n".encode("latin-1"), "no UTF-8 text (line 2)"),
    "NUL": (b"a: 1\nb: \0\n", r"'\x00' in line 2"),
    "an escape": (b"a: \x1b[31m\n", r"'\x1b' in line 1"),
    "too large": (b"#" * (MOST_BYTES + 1), "more than 65,536 bytes"),
}
OBJECTS = {
    "a key twice": (b'{"a": 1, "a": 2}', "'a' stands twice"),
    "an inner key twice": (b'{"a": {"b": 1, "b": 2}}', "'b' stands twice"),
    "nested lists": (b'{"a": ' + b"[" * 20_000, "levels deep"),
    "deep lists": (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "levels deep"),
    "200 digits": (b'{"a": ' + b"9" * 200 + b"}", "200 digits"),
    "5,000 digits": (b'{"a": -' + b"9" * 5000 + b"}", "digits"),
    "infinity": (b'{"a": 1e999}', "'1e999' is no finite number"),
    "no object": (b"[1]", "holds a list"),
    "null": (b"null", "holds nothing"),
    "half": (b'{"a": [1,', "not valid JSON"),
    "an open text": (b"{a: '''", "not valid JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "save it as UTF-8"),
    "NUL": (b'{"a": "\0"}', r"'\x00' in line 1"),
    "many commas": (b'{"a": ' + b"1" * 30_000 + b"x" + b"," * 30_000 + b"\n}", "not valid JSON"),
}


def refused_at_once(path: Path, read, words: str) -> None:
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert words in message
    assert message.isprintable()  # one line, nothing that a terminal obeys
    assert len(message) < len(str(path)) + 300
    assert time.monotonic() - start < 2.0  # milliseconds alone; the machine may be busy


@pytest.mark.parametrize("name", TREES)
def test_hostile_yaml_is_refused_in_one_line_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(TREES[name][0])
    refused_at_once(path, read_yaml, TREES[name][1])


@pytest.mark.parametrize("hjson_too", [False, True])
@pytest.mark.parametrize("name", OBJECTS)
def test_hostile_json_is_refused_in_one_line_at_once(
    tmp_path: Path, name: str, hjson_too: bool
) -> None:
    path = tmp_path / "engine.json"
    path.write_bytes(OBJECTS[name][0])
    refused_at_once(path, lambda path: read_json(path, hjson_too=hjson_too), OBJECTS[name][1])


@pytest.mark.parametrize(
    ("make", "words"),
    [(os.mkfifo, "no regular file"), (os.mkdir, "is a folder: give a file in it")],
)
def test_only_regular_files_are_read(tmp_path: Path, make, words: str) -> None:
    path = tmp_path / "config.yaml"
    make(path)
    refused_at_once(path, read_yaml, words)


@pytest.mark.parametrize("name", ["none.yaml", "config.yaml/below", "a\0b"])
def test_a_file_that_does_not_open_is_named_with_the_callers_error(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    with pytest.raises(DataError):
        read_text(tmp_path / name, error=DataError)


def test_yaml_means_what_version_1_2_says() -> None:
    text = "a: 1e-3\nb: .5\nc: 12:30\nd: yes\ne: 2024-99-99\nf: 010\ng: true\nh: ~\ni: -7\nj: 2.\n"
    assert parse_yaml(text, where="x") == {
        "a": 1e-3, "b": 0.5, "c": "12:30", "d": "yes", "e": "2024-99-99", "f": "010",
        "g": True, "h": None, "i": -7, "j": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["1e-3", "yes", "off", "0.5", "12:30", "2024-01-31", "", "~", "a"])
def test_texts_are_written_so_that_every_reader_takes_them_for_texts(text: str) -> None:
    import yaml

    written = dump_yaml({"a": text})
    assert parse_yaml(written, where="x") == yaml.safe_load(written) == {"a": text}


def test_nesting_up_to_the_limit_is_read() -> None:
    text = '{"a": ' + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1) + "}"
    assert parse_json(text, where="x") == parse_yaml(text, where="x")


WRONG_HJSON = {
    '{\n "a": NaN,\n "b": 1}': r"'NaN' is no number; a text needs quotes: line 2 column 7",
    '{"a": 08, "b": 1}': r"'08' is no number; .*line 1 column 7",
    '{"a": +1}': r"'\+1' is no number; .*line 1 column 7",
    '{\n"a": 1e999}': r"'1e999' is no finite number: line 2 column 6",
    '{"a": [1, 2}': r"A value is expected: line 1 column 12",
    "{a: 1}\n/*": r"the comment that starts in line 2 has no end",
    "{a: 1 /* x\n}": r"the comment that starts in line 1 has no end",
    "{\na: '''": r"the text that starts in line 2 has no end",
    "{\na: '''x\n}": r"Bad multiline string: line 3 column 2",
    "{a: 1,\nb: 2\n": r"it ends in line 3 before a closing }",
}


@pytest.mark.parametrize("text", WRONG_HJSON)
def test_a_mistake_in_hjson_is_named_with_its_place(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^f.json: not valid JSON: {WRONG_HJSON[text]}"):
        parse_json(text, where="f.json", hjson_too=True)


def test_hjson_has_comments_bare_words_and_commas_at_will() -> None:
    text = """
    # one
    {  // two
      a: 5e8, b: -1.5 /* three */, c: [1, true,]
      d: bf16 # four
      "e": {f: ds_configs/cpu.json, g: null}
    }
    """
    assert parse_json(text, where="x", hjson_too=True) == {
        "a": 5e8, "b": -1.5, "c": [1, True], "d": "bf16",
        "e": {"f": "ds_configs/cpu.json", "g": None},
    }  # fmt: skip


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path) == {"a": 1}


def test_a_pointer_of_git_lfs_is_told_from_a_text_of_another_form(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ConfigError, match=r"train\.json is a pointer of Git LFS, .*git lfs pull"):
        read_json(path)
