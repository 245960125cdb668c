"""The files of ds_configs/: each fits the machine that it is for, and all keys are explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harl_fast.engine.config import Batches, EngineConfig, EngineFile, read_engine_file, settle
from harl_fast.engine.machine import Machine, check_machine
from harl_fast.textfile import read_json
from tests.engine.support import ROOT

FOLDER = ROOT / "ds_configs"
FILES = sorted(FOLDER.glob("*.json"))
BATCHES = {
    "cpu.json": [Batches(64, 64, 1, 1), Batches(64, 32, 1, 2)],
    "gpu.json": [Batches(64, 64, 1, 1), Batches(192, 64, 1, 3), Batches(512, 64, 1, 8)],
    "a100x1.json": [Batches(4096, 512, 8, 1)],
    "a100x8.json": [Batches(4096, 512, 1, 8)],
    "h100x8.json": [Batches(4096, 512, 1, 8)],
    "a100x16-2nodes.json": [Batches(4096, 256, 1, 16)],
}
"""Of each file, on the numbers of ranks that it is for."""
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key that is no section, and its value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def fitting(file: EngineFile, ranks: int) -> Machine:
    """Return rank 0's machine, as a file's name promises it: 8 GPUs at most, or none."""
    here = min(ranks, 8)
    gpus = here if file.harl_fast.device == "cuda" else 0
    return Machine(ranks=ranks, ranks_here=here, gpus=gpus, gpu_gb=85.0 if gpus else 0.0)


def settled(path: Path, ranks: int) -> EngineConfig:
    """Return a file settled for ranks on the machine that it is for."""
    file = read_engine_file(path)
    check_machine(file.harl_fast, fitting(file, ranks), source=path.name)
    return settle(file, ranks=ranks, source=path.name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_settles_for_its_machine_and_clips_nothing(path: Path) -> None:
    for expected in BATCHES[path.name]:
        config = settled(path, expected.ranks)
        assert config.batches == expected
        assert config.deepspeed()["gradient_clipping"] == 0.0
        assert config.precision == ("fp32" if path.name == "cpu.json" else "bf16")
        assert config.stage == min(expected.ranks - 1, 1)
        assert (ROOT / config.file.harl_fast.instead).exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_key_is_explained_with_its_value(path: Path) -> None:
    (part,) = re.findall(rf"^## {re.escape(path.name)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \| (.+) \|$", part, re.M)
    assert {key: json.loads(value) for key, value, _ in rows} == dict(
        leaves(read_json(path, hjson_too=True))
    )
    assert len(rows) == part.count("\n| `") and all(why.strip() for *_, why in rows)


def test_the_table_of_the_files_states_their_batches() -> None:
    table = dict(re.findall(r"^\| \[`([\w.-]+)`\].*\| (.+) \|$", PAGE, re.M))
    assert table.keys() == BATCHES.keys() == {path.name for path in FILES}
    for name, told in table.items():
        if name == "gpu.json":
            assert told == "64 x cards"
            continue
        found = re.findall(r"= (\d+) x (\d+) x (\d+)", told)
        batches = [Batches(*(int(told.split(" = ")[0]), *map(int, each))) for each in found]
        assert batches == BATCHES[name]


def test_the_file_for_any_cards_asks_for_nothing_else() -> None:
    needs = read_engine_file(FOLDER / "gpu.json").harl_fast
    assert (needs.ranks, needs.memory_gb) == (None, 0.0)
