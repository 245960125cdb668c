"""Copies of a data set's containers on a machine's own disk: whole and checked, or not there."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harl_fast.data.container.digest import has_digest
from harl_fast.data.container.manifest import (
    MOST_BYTES,
    Manifest,
    containers_in,
    find_container,
    manifest_path,
    names_path,
    read_manifest,
    read_shard,
    sums_path,
)
from harl_fast.errors import DataError, OutputError, explain
from harl_fast.files import Progress, open_regular, sha256_file, sync, to_stderr, write_json
from harl_fast.lock import InUseError, holder, lock_beside, locked
from harl_fast.textfile import read_json, tree_sha256

NOTE = "staged.json"
"""In a copy: size and time of each file when its checksum was right."""
PATIENCE_S = 120.0
"""How long a process waits for the one that copies to begin; their starts take unequal times."""
_LOOK_S = 0.2
_READ_BYTES = 1 << 23


@dataclass(frozen=True)
class _Part:
    """A file of a container."""

    path: Path
    """Relative to the data folder."""
    size: int
    sha256: str


def stage(source: Path, to: Path, *, first: bool) -> Path:
    """Return the folder in ``to`` with copies of a data folder's containers, made if it is missing.

    It is named after the data folder and the manifests' checksums, so that sets of one name, and
    the same set after a change, lie beside each other. Every copy is compared with the checksum in
    its manifest, and the folder gets its name when all is there. What lies there
    before is kept: a file that has changed since is read again, and must still be as its manifest
    says.

    first: of a machine's processes one copies, and the others wait until the folder is there.
    Raises DataError for a source or a copy that is not sound, OutputError if ``to`` has no room or
    cannot be written to; nothing half-written stays under the folder's name.
    """
    parts = list(_parts(source))
    listed = {str(part.path): part.sha256 for part in parts}
    folder = to / f"{source.resolve().name}-{tree_sha256(listed)[:12]}"
    if not first:
        _wait_for(folder)
        return folder
    try:
        with _alone(folder):
            if not folder.exists():
                _copy(parts, source, folder)
            else:
                _check(parts, folder)
    except OSError as error:
        raise OutputError(f"--stage-to {to}: {explain(error)}") from error
    return folder


def _parts(source: Path) -> Iterator[_Part]:
    """Yield the files of both splits that training reads. Raises DataError."""
    find_container(source, "train")  # the other split may be missing
    for split in ("train", "val"):
        if not containers_in(source, split):
            continue
        container = find_container(source, split)
        manifest = read_manifest(container)
        if manifest.shards:
            yield _part(source, manifest_path(container))
            for shard in manifest.shards:
                yield from _files(source, container / shard.file, read_shard(container, shard))
        else:
            yield from _files(source, container, manifest)


def _files(source: Path, beton: Path, manifest: Manifest) -> Iterator[_Part]:
    yield _part(source, beton, manifest.beton_sha256)
    yield _part(source, names_path(beton), manifest.names_sha256)
    if manifest.sums_sha256:
        yield _part(source, sums_path(beton), manifest.sums_sha256)
    yield _part(source, manifest_path(beton))


def _part(source: Path, path: Path, sha256: str = "") -> _Part:
    """Return a file. sha256: as its manifest says; a manifest's own is taken now."""
    try:
        return _Part(path.relative_to(source), path.stat().st_size, sha256 or sha256_file(path))
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror or error}. --stage-to copies whole sets: copy that file "
            f"again, or train on {source} itself, where data.skip_broken=true leaves it out"
        ) from error


def _wait_for(folder: Path) -> None:
    """Wait until a folder is there. Raises OutputError if nobody makes it."""
    seen_s = time.monotonic()
    while not folder.is_dir():
        time.sleep(_LOOK_S)
        if holder(lock_beside(folder)) is not None:
            seen_s = time.monotonic()
        elif time.monotonic() - seen_s > PATIENCE_S:
            raise OutputError(
                f"{folder} is made by no process: the first rank of this machine, which was to, "
                f"has ended; see its message"
            )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the right to write a folder; wait while another job of this machine has it."""
    told = False
    with contextlib.ExitStack() as held:
        while True:  # several that wait may find it free in the same moment
            try:
                held.enter_context(locked(lock_beside(folder), output=folder))
                break
            except InUseError as error:
                if not told:
                    to_stderr(f"{folder} is being copied by {error.owner}: waiting")
                told = True
                time.sleep(_LOOK_S)
        yield


def _copy(parts: Sequence[_Part], source: Path, folder: Path) -> None:
    """Make the folder."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):  # of a killed process
        shutil.rmtree(left)
    need, free = sum(part.size for part in parts), shutil.disk_usage(folder.parent).free
    if need > free:
        raise OutputError(
            f"--stage-to {folder.parent} has {free / 1e9:,.1f} GB free, and the containers of "
            f"{source} take {need / 1e9:,.1f}: free space there, or train on {source} itself"
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    label = f"copying {source} to {folder.parent}"
    try:
        with Progress(need >> 20, label=label, unit="MiB") as progress:
            read = 0
            for part in parts:
                out = temporary / part.path
                out.parent.mkdir(parents=True, exist_ok=True)
                _copy_file(source / part.path, out, part.sha256, progress=progress, before=read)
                read += part.size
        _note(parts, temporary)
        os.rename(temporary, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_file(path: Path, out: Path, sha256: str, *, progress: Progress, before: int) -> None:
    """Copy a file to disk. before: bytes that were copied before it. Raises DataError, OSError."""
    with open_regular(path) as stream, open(out, "wb") as target:
        while piece := stream.read(_READ_BYTES):
            target.write(piece)
            progress.advance(((before + stream.tell()) >> 20) - progress.done)
    sync(out)
    if not has_digest(out, sha256):
        raise DataError(
            f"{path} is not what its manifest describes (its SHA-256 differs): `python -m "
            f"preprocess.verify --deep` says what of it is damaged; copy it again from where it "
            f"was made, or write it again with `make beton`"
        )


def _check(parts: Sequence[_Part], folder: Path) -> None:
    """Raise DataError unless a folder still holds what was copied into it."""
    note = folder / NOTE
    known = dict[str, Any]()
    with contextlib.suppress(DataError):  # missing or damaged: all is read again
        known = read_json(note, error=DataError, most_bytes=MOST_BYTES)
    states = [(part, _state(folder / part.path)) for part in parts]
    changed = [p for p, state in states if state is None or known.get(str(p.path)) != state]
    if not changed:
        return
    megabytes = sum(part.size for part in changed) >> 20
    with Progress(megabytes, label=f"reading {folder} again", unit="MiB", least_s=2.0) as progress:
        for part in changed:
            path, before = folder / part.path, progress.done
            sound = path.is_file() and path.stat().st_size == part.size
            if not (sound and has_digest(path, part.sha256)):
                raise DataError(
                    f"{path} is no copy of what its manifest describes any more: delete {folder}, "
                    f"and it is made again"
                )
            progress.advance(before + (part.size >> 20) - progress.done)
    _note(parts, folder)


def _note(parts: Sequence[_Part], folder: Path) -> None:
    write_json(folder / NOTE, {str(part.path): _state(folder / part.path) for part in parts})


def _state(path: Path) -> list[int] | None:
    """Return size and time of a file; None where there is none."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return [found.st_size, found.st_mtime_ns]
    return None
