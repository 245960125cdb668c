"""A small finished run to damage and to resume, as the program would up to its first step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from harl_fast.engine.checkpoint.format import _seal
from harl_fast.engine.machine import Machine
from harl_fast.engine.pretrain import prepare
from harl_fast.engine.runfolder import open_run_folder
from harl_fast.engine.start import Start, StartRequest, decide
from harl_fast.engine.state import TrainState
from harl_fast.engine.trainer import Trainer
from harl_fast.files import sha256_file
from harl_fast.runfiles import RunFolder
from tests.engine.support import STEPS, FakeLoader, engine_config, tiny_file

LAST = f"step-{2 * STEPS:08d}"
FIRST = f"step-{STEPS:08d}"
AS_BEGUN = ("data.colour=device",)


def ask(**changes: Any) -> StartRequest:
    """Return what ``--resume`` alone asks for, with changes."""
    plain = {"config": None, "overrides": (), "resume": True, "init_from": None, "allow_change": ()}
    return StartRequest(**{**plain, **changes})


def start(
    folder: Path, machine: Machine, *, asked: StartRequest, engine: Sequence[str] = ()
) -> tuple[Start, TrainState]:
    """Do what the program does before the first step."""
    begun = decide(
        open_run_folder(folder, resume=asked.resume), engine_config(overrides=engine), asked
    )
    loader: Any = FakeLoader()
    return begun, prepare(begun, machine, loader=loader, data=folder)


def train(folder: Path, machine: Machine, *, config: Path, overrides: Sequence[str] = ()) -> None:
    """Train a new run of two epochs to its end."""
    asked = ask(config=str(tiny_file(config)), overrides=(*AS_BEGUN, *overrides), resume=False)
    begun, parts = start(folder, machine, asked=asked)
    assert Trainer(parts, RunFolder(folder), run_id=begun.run_id).run() == 0


def copy(run: Path, tmp_path: Path) -> Path:
    """Return a copy of a run's folder."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def rewrite(
    folder: Path,
    *,
    tensors: Callable[[dict[str, Tensor]], None] = lambda found: None,
    record: Callable[[dict[str, Any]], None] = lambda found: None,
    name: str = LAST,
) -> None:
    """Change a checkpoint and give it fitting sizes and digests."""
    path = folder / "checkpoints" / f"{name}.safetensors"
    found = load_file(path)
    tensors(found)
    save_file(found, path)
    note = path.with_suffix(".json")
    tree = json.loads(note.read_text())
    tree |= {"tensors_bytes": path.stat().st_size, "tensors_sha256": sha256_file(path)}
    record(tree)
    if "record_sha256" in tree:
        tree["record_sha256"] = _seal(tree)
    note.write_text(json.dumps(tree))
