"""Where a conversion writes: a folder whose parts appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harl_fast.data.container.manifest import Manifest, find_container, read_manifest
from harl_fast.errors import DataError
from harl_fast.files import check_output, sync, write_json
from harl_fast.lock import FOLDER_LOCK, locked
from harl_fast.textfile import read_json
from preprocess.urls import UrlPlace

FRESH = ".new."
"""Begins the names of folders that are being written: what a killed run left is of no use."""


class LocalPlace:
    """A folder of this machine, or one that several machines share. Names are relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def check(self) -> None:
        """Raise `OutputError` unless something can be written there."""
        check_output(self.root, option="--out", folder=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock, see `harl_fast.lock.locked`."""
        with locked(self.root / FOLDER_LOCK, output=self.root):
            yield

    def names(self, folder: str = "") -> list[str]:
        """Return what lies in a folder, sorted; nothing if it is not there."""
        try:
            return sorted(os.listdir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder of this name."""
        return (self.root / name).exists()

    def size(self, name: str) -> int:
        """Return a file's bytes, or -1 if it is not there."""
        path = self.root / name
        return path.stat().st_size if path.is_file() else -1

    def path(self, name: str) -> Path:
        """Return a file of this machine with the content of a small file."""
        return self.root / name

    def read(self, name: str) -> Any:
        """Return what a JSON file holds; raises `DataError`."""
        return read_json(self.path(name), error=DataError, most_bytes=1 << 30)

    def write(self, name: str, tree: Any) -> None:
        """Write a JSON file in one atomic step."""
        write_json(self.root / name, tree)

    def move(self, old: str, new: str) -> None:
        """Give a file another name, over what has it, unless the file is gone already.

        The folder that it leaves is removed when it was the last there.
        """
        target = self.root / new
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.root / old, target)
        with contextlib.suppress(OSError):
            (self.root / old).parent.rmdir()

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, if it is there."""
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def flush(self) -> None:
        """Return when the names are on disk."""
        sync(self.root)

    def manifest(self, split: str) -> Manifest:
        """Return the manifest of a split's container or set."""
        return read_manifest(find_container(self.root, split))

    @contextlib.contextmanager
    def staging(self, name: str, *, shown: str = "") -> Iterator[Path]:
        """Yield an empty folder of this machine; on success it becomes the folder ``name``.

        The files that are put there must be on disk by then, as `replacing` sees to. Where another
        process did so first, its folder stays. An `OSError` names a file as if its stem were
        ``shown``, which may lie in a folder.
        """
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=FRESH, suffix=".tmp", dir=target.parent))
        try:
            yield fresh
            sync(fresh)
            try:
                os.rename(fresh, target)
            except OSError:
                if not target.is_dir():
                    raise
            sync(target.parent)
        except OSError as error:
            if error.filename and Path(error.filename).parent == fresh:
                suffixes = Path(error.filename).name.partition(".")[2]
                error.filename = f"{self.root / shown}.{suffixes}"
            raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds finished shards
                target.parent.rmdir()


Place = LocalPlace | UrlPlace
