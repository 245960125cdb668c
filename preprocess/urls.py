"""Images from, and containers to, whatever `fsspec` reaches by a URL: S3 and its like.

Objects appear whole there, but folders do not, and a file gets another name by a copy. A mark is
therefore put into a folder when all else is in it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harl_fast.data.container.manifest import Manifest, read_manifest
from harl_fast.errors import ConfigError, DataError, OutputError, one_line
from harl_fast.files import Progress
from harl_fast.lock import FOLDER_LOCK, locked_object

_WHOLE = ".whole"


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path within; raises `ConfigError`."""
    from fsspec.core import url_to_fs  # an extra of its own for most kinds

    try:
        found, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{one_line(url)}: {one_line(str(error))}. URLs are opened by fsspec: "
            f"`pip install s3fs` adds s3://, gcsfs gs://, adlfs az://"
        ) from error
    return found, str(path).rstrip("/")


class UrlPlace:
    """Like `LocalPlace`, behind a URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = file_system(url)
        self._copies = tempfile.TemporaryDirectory(prefix="harl_fast-")

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return UrlPlace, (self.url,)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def check(self) -> None:
        """Raise `OutputError` unless something can be written there."""
        trial = self._at(".trial.tmp")
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(trial, b"\0")
            self._fs.rm_file(trial)
        except Exception as error:  # every file system has errors of its own
            raise OutputError(
                f"--out {one_line(self.url)} cannot be written: {one_line(str(error))[:300]}. "
                f"Check its name and your rights, then run the command again"
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the place, see `locked_object`."""

        def read() -> bytes | None:
            try:
                return bytes(self._fs.cat_file(self._at(FOLDER_LOCK)))
            except FileNotFoundError:
                return None

        with locked_object(
            read,
            lambda data: self._fs.pipe_file(self._at(FOLDER_LOCK), data),
            lambda: self.remove(FOLDER_LOCK),
            output=f"{self.url}/{FOLDER_LOCK}",
        ):
            yield

    def names(self, folder: str = "") -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._at(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(Path(str(path)).name for path in found)

    def exists(self, name: str) -> bool:
        """Return whether there is a file of this name, or a folder that is whole."""
        self._fs.invalidate_cache()
        return bool(
            self._fs.isfile(self._at(name)) or self._fs.isfile(self._at(f"{name}/{_WHOLE}"))
        )

    def path(self, name: str) -> Path:
        """Return a copy of a small file; of a container the name alone, for its manifest's."""
        copy = Path(self._copies.name) / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if copy.suffix == ".beton":
            self.path(str(Path(name).with_suffix(".json")))
            return copy
        try:
            copy.write_bytes(self._fs.cat_file(self._at(name)))
        except FileNotFoundError as error:
            raise DataError(f"{self.url}/{name} is missing") from error
        return copy

    def read(self, name: str) -> Any:
        return json.loads(self.path(name).read_bytes())

    def write(self, name: str, tree: Any) -> None:
        self._fs.pipe_file(self._at(name), json.dumps(tree, indent=2).encode())

    def move(self, old: str, new: str) -> None:
        self._fs.invalidate_cache()
        if self._fs.isfile(self._at(old)):
            self._fs.makedirs(self._at(new).rpartition("/")[0], exist_ok=True)
            self._fs.mv(self._at(old), self._at(new))

    def remove(self, name: str) -> None:
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._at(name), recursive=True)

    def flush(self) -> None:
        """Nothing is held back: an object that was written is there."""

    def manifest(self, split: str) -> Manifest:
        path = self.path(f"{split}.json").with_suffix("")
        if not self.exists(f"{split}.beton"):
            path.mkdir(exist_ok=True)
            return read_manifest(path)
        return read_manifest(path.with_suffix(".beton"))

    @contextlib.contextmanager
    def staging(self, name: str, *, shown: str = "") -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="harl_fast-") as fresh:
            yield Path(fresh)
            if self.exists(name):
                return
            for path in sorted(Path(fresh).iterdir()):
                self._fs.makedirs(self._at(name), exist_ok=True)
                self._fs.put_file(str(path), self._at(f"{name}/{path.name}"))
            self._fs.pipe_file(self._at(f"{name}/{_WHOLE}"), b"")


def mirror(url: str, folder: Path) -> Path:
    """Copy what is below a URL to ``folder``, where files of the same size stay; return its place.

    Raises `DataError` if nothing is there or it cannot be read.
    """
    system, root = file_system(url)
    place = folder / (one_line(root.rpartition("/")[2]) or "source")
    try:
        found = system.find(root, detail=True)
        files = {path: int(facts.get("size") or 0) for path, facts in found.items()}
        with Progress(len(files), label=f"copying {url}", unit="files", least_s=1.0) as progress:
            for path, size in files.items():
                inner = path[len(root) :].lstrip("/")
                target = place / inner if inner else place
                if not (target.is_file() and target.stat().st_size == size):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    temporary = target.with_name(f".{target.name}.tmp")
                    system.get_file(path, str(temporary))
                    temporary.replace(target)
                progress.advance()
    except OSError as error:
        if error.errno is not None and error.filename and str(folder) in str(error.filename):
            raise
        raise DataError(f"{one_line(url)} cannot be read: {one_line(str(error))[:300]}") from error
    if not files:
        raise DataError(f"{one_line(url)} holds no files: check the URL")
    for path in sorted(place.rglob("*"), reverse=True) if place.is_dir() else ():
        if path.is_file() and f"{root}/{path.relative_to(place).as_posix()}" not in files:
            path.unlink()  # it is gone there
    return place
