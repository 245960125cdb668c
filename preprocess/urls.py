"""Images from, and containers to, whatever `fsspec` reaches by a URL: S3 and its like.

Objects appear whole there, but folders do not, and a file gets another name by a copy. A mark is
therefore put into a folder when all else is in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import posixpath
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from harl_fast.data.container.manifest import Manifest, read_manifest
from harl_fast.errors import ConfigError, DataError, OutputError, one_line
from harl_fast.files import Progress, short_temporary
from harl_fast.lock import FOLDER_LOCK, locked_object
from harl_fast.textfile import read_json

_WHOLE = ".whole"
_COPIED = ".copied.jsonl"
"""Marks a folder as a copy made by this program: its first line, then a line for each file."""
_MARK = "A copy that harl_fast made: what is gone from its source is deleted here."
_AT_ONCE, _SUBMITTED = 16, 1 << 12
"""Files that are copied at once, and how many wait for it."""
_VERSIONS = (
    *("ETag", "etag", "LastModified", "last_modified", "Last-Modified", "mtime", "modified"),
    *("updated", "created", "generation", "Content-MD5", "Digest", "sha", "blob_id"),
)
"""What file systems tell of a file that changes with its content; each has its own."""


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path within; raises `ConfigError`."""
    from fsspec.core import url_to_fs  # an extra of its own for most kinds

    parts = url.partition("://")[2].rstrip("/").split("/")
    if not parts[-1] or {".", ".."} & set(parts):
        raise ConfigError(
            f"{one_line(url)}: a URL needs a name at its end and no part that is '.' or '..': "
            f"write the folder's own name"
        )
    try:
        found, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{one_line(url)}: {one_line(str(error))}. URLs are opened by fsspec: "
            f"`pip install s3fs` adds s3://, gcsfs gs://, adlfs az://"
        ) from error
    return found, str(path).rstrip("/")


def local_folder(url: str) -> Path | None:
    """Return the folder of this machine that a URL such as ``file:///data`` means, if it does."""
    from fsspec.implementations.local import LocalFileSystem

    system, path = file_system(url)
    return Path(path) if isinstance(system, LocalFileSystem) else None


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

    def _make_folder(self, path: str) -> None:
        # Object stores, whose paths begin with a bucket, need none; a mistyped one would be made.
        if path.startswith("/"):
            self._fs.makedirs(path, exist_ok=True)

    def check(self) -> None:
        """Raise `OutputError` unless something can be written there."""
        trial = self._at(".trial.tmp")
        try:
            self._make_folder(self._root)
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

    def size(self, name: str) -> int:
        self._fs.invalidate_cache()
        path = self._at(name)
        return int(self._fs.size(path)) if self._fs.isfile(path) else -1

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
        copy = self.path(name)
        try:
            return read_json(copy, error=DataError, most_bytes=1 << 30)
        except DataError as error:
            raise DataError(str(error).replace(str(copy), f"{self.url}/{name}")) from error

    def write(self, name: str, tree: Any) -> None:
        self._make_folder(self._at(name).rpartition("/")[0])
        self._fs.pipe_file(self._at(name), json.dumps(tree, indent=2).encode())

    def move(self, old: str, new: str) -> None:
        self._fs.invalidate_cache()
        if self._fs.isfile(self._at(old)):
            self._make_folder(self._at(new).rpartition("/")[0])
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
            self._make_folder(self._at(name))
            for path in sorted(Path(fresh).iterdir()):
                self._fs.put_file(str(path), self._at(f"{name}/{path.name}"))
            self._fs.pipe_file(self._at(f"{name}/{_WHOLE}"), b"")


def mirror(url: str, folder: Path) -> Path:
    """Copy what is below a URL into a folder of its own in ``folder``; return the copy's place.

    Files stay that the file system says are those copied before, and that have not changed here
    since; what is gone there is deleted.
    Raises `DataError` if nothing is there, it cannot be read, or its folder is not this program's.
    """
    system, root = file_system(url)
    name = one_line(root.rpartition("/")[2]) or "source"
    own = folder / f"{name[:50]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"  # of <= 255 bytes
    place = own / name
    known = _copied(own)
    with _told(url, folder):
        found = system.find(root, detail=True)
    if not found:
        raise DataError(f"{one_line(url)} holds no files: check the URL")
    inside = {path: _inner(path, root, url) for path in found}
    _check_apart(inside, url)

    def fetch(path: str) -> str:
        """Copy a file unless it is there; return the line that notes it, or ""."""
        inner = inside[path]
        target = place / inner
        with _told(url, folder):
            version = _version(found[path]) or _version(system.info(path))
            if version and known.get(inner) == [version, *_state(target)]:
                return ""
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = short_temporary(target)
            system.get_file(path, str(temporary))
            temporary.replace(target)
        return f"\n{json.dumps([inner, version, *_state(target)])}"

    with (
        Progress(len(found), label=f"copying {url}", unit="files", least_s=1.0) as progress,
        open(own / _COPIED, "a", encoding="utf-8") as copied,
        # Object stores answer slowly, but many at once; others may have one connection.
        ThreadPoolExecutor(_AT_ONCE if system.async_impl else 1) as threads,
    ):
        paths = list(found)
        for start in range(0, len(paths), _SUBMITTED):
            part = paths[start : start + _SUBMITTED]
            for line in threads.map(fetch, part):
                copied.write(line)
                progress.advance()
    kept = {place / inner for inner in inside.values()}
    for old in sorted(place.rglob("*"), reverse=True):
        if old.is_file() and old not in kept:
            old.unlink()
    return place


def _inner(path: str, root: str, url: str) -> str:
    """Return a file's path below ``root``; `DataError` for one that is none on this machine."""
    inner = path[len(root) :].lstrip("/")
    if ".." in inner.split("/") or "\0" in inner:
        raise DataError(f"{one_line(url)} holds {one_line(inner)}: rename it, without '..' and NUL")
    return inner


def _check_apart(inside: Mapping[str, str], url: str) -> None:
    """Raise `DataError` if two files would lie in one place: any text is an object's name."""
    places = dict[str, str]()
    for path, inner in inside.items():
        other = places.setdefault(posixpath.normpath(inner), path)
        if other != path:
            raise DataError(
                f"{one_line(url)} holds {one_line(other)} and {one_line(path)}, which are one file "
                f"on this machine: rename one of them"
            )
    folders = {str(folder) for place in places for folder in PurePosixPath(place).parents}
    if both := folders & places.keys():
        raise DataError(
            f"{one_line(url)} holds {one_line(places[min(both)])} as a file and as a folder, which "
            f"this machine cannot: rename one of them"
        )


@contextlib.contextmanager
def _told(url: str, folder: Path) -> Iterator[None]:
    """Make `DataError` of what goes wrong there; errors of files of ``folder`` pass."""
    try:
        yield
    except Exception as error:  # every file system has errors of its own
        if isinstance(error, OSError) and str(folder) in str(error.filename):
            raise
        raise DataError(
            f"{one_line(url)} cannot be read: {one_line(str(error))[:300]}. Check the URL, the "
            f"network and your credentials for it, then run the command again"
        ) from error


def _version(facts: Mapping[str, Any]) -> str:
    """Return what changes with a file's content, "" if its file system tells nothing of it."""
    told = [f"{key}={facts[key]}" for key in _VERSIONS if facts.get(key)]
    return " ".join([*told, f"size={facts.get('size')}"]) if told else ""


def _state(copy: Path) -> list[int]:
    """Return size and time of a file as it was copied; nothing where there is none."""
    with contextlib.suppress(OSError):
        found = copy.stat()
        return [found.st_size, found.st_mtime_ns]
    return []


def _copied(own: Path) -> dict[str, list[Any]]:
    """Return each copied file's version and `_state`; make and mark the folder if it is new.

    Raises `DataError` for a folder that holds files and no mark.
    """
    own.mkdir(parents=True, exist_ok=True)
    index = own / _COPIED
    if not index.is_file():
        if any(own.iterdir()):
            raise DataError(
                f"{one_line(str(own))} is to hold a copy of the images, but holds files that this "
                f"program did not put there: move it away"
            )
        index.write_text(_MARK, encoding="utf-8")
    copies = dict[str, list[Any]]()
    for line in index.read_text(encoding="utf-8", errors="replace").split("\n")[1:]:
        with contextlib.suppress(ValueError, TypeError):  # cut off by a crash: copied again
            name, *about = json.loads(line)
            copies[name] = about
    return copies
