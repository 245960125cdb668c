"""Sends what rank 0 reads of a run to ranks on other machines, which need not see its folder."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from harl_fast.engine.checkpoint.format import last_name
from harl_fast.runfiles import LATEST, RunFolder

_CHUNK_BYTES = 1 << 26
"""Bytes that are sent at once."""


@contextlib.contextmanager
def handed_over() -> Iterator[tuple[Path, bool]]:
    """Give a folder with what rank 0's holds of the run that goes on, and whether one does.

    The folder is of this rank alone and temporary. All ranks must call this or `hand_over`.
    """
    with tempfile.TemporaryDirectory(prefix="harl_fast-") as place:
        folder = Path(place) / "run"
        yield folder, _exchange(None, folder, {})["resume"]


def hand_over(run: Path, *, resume: bool, rank: int) -> None:
    """Send, as rank 0, what a run's folder holds to the ranks that call `handed_over`."""
    tree = {"resume": resume, "files": _sizes(RunFolder(run)) if resume and rank == 0 else {}}
    _exchange(run if rank == 0 else None, None, tree)


def _sizes(folder: RunFolder) -> dict[str, int]:
    """Return the sizes in bytes of all files that a start looks at, by their names in a folder."""
    latest, inside = last_name(folder.checkpoints), folder.checkpoints
    files = [inside / LATEST, inside / f"{latest}.safetensors", inside / f"{latest}.json"]
    files += [folder.config, folder.engine, folder.provenance, folder.subset]
    return {str(f.relative_to(folder.path)): f.stat().st_size for f in files if f.is_file()}


def _exchange(source: Path | None, target: Path | None, tree: dict[str, Any]) -> dict[str, Any]:
    """Send a tree and the files that it names from rank 0's folder into others'; return it."""
    from harl_fast import collectives

    text = torch.frombuffer(bytearray(json.dumps(tree).encode()), dtype=torch.uint8)
    length = torch.tensor([len(text)])
    collectives.broadcast(length)
    text = text if source else torch.empty(int(length), dtype=torch.uint8)
    collectives.broadcast(text)
    tree = json.loads(bytes(text.tolist()))
    for name, size in tree["files"].items():
        with contextlib.ExitStack() as files:
            reading = writing = None
            if source is not None:
                reading = files.enter_context(open(source / name, "rb"))
            if target is not None:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                writing = files.enter_context(open(target / name, "wb"))
            for start in range(0, size, _CHUNK_BYTES):
                piece = torch.zeros(min(_CHUNK_BYTES, size - start), dtype=torch.uint8)
                if reading is not None:
                    reading.readinto(piece.numpy().data)
                collectives.broadcast(piece)
                if writing is not None:
                    writing.write(piece.numpy().data)
    return tree
