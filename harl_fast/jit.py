"""numba's `njit` with a store of machine code that outlives the process and is checked when read.

numba's own store looks at the file of the function alone, so that a changed crop rule would go on
running from the cached decoder that has it inlined. It takes each file for whole: a cut one ends
every start in a traceback, a changed one is run. Its index is rewritten by processes that do not
know of each other. And its folder is a switch of the whole process.

Here a file holds one function for one signature and processor. Its name is made of all that the
machine code depends on, and its first bytes are a checksum.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import operator
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from harl_fast.errors import ConfigError
from harl_fast.files import open_regular, replacing
from harl_fast.host import usable_cores

TOGETHER = (
    "rng.py",
    *("data/container/checksum.py", "data/container/fields.py"),
    *("data/views/crop.py", "data/views/cells.py", "data/views/resize.py"),
    *("data/views/jpegheader.py", "data/views/jpeg.py", "data/views/jpegscan.py"),
    *("data/views/pixelops.py", "data/views/color_cpu.py", "data/views/background.py"),
    *("data/views/sample.py", "data/views/batch.py"),
)
"""Files whose compiled functions call each other, and whose constants are part of machine code: a
change in one makes all be compiled again. Compiled functions elsewhere use their own file only."""
FAST_SUMS = {"reassoc", "contract", "nsz", "arcp"}
"""``fastmath`` by which sums may be reordered, so that they are vectorised; infinities keep their
meaning."""

# Without a writable /dev/shm it has no lock among processes, which only forks at its start need.
warnings.filterwarnings("ignore", ".*multiprocessing lock", numba.errors.NumbaSystemWarning)

if usable_cores() == 1:
    # On one core TBB waits for ever, at the exit of the process, for what another thread than the
    # main one, such as the loader's, ran on it (seen with numba 0.68 and oneTBB 2021.8).
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]

_holds_addresses = operator.attrgetter("library.has_dynamic_globals")
"""Whether compiled code refers to places in this process's memory."""
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_log = logging.getLogger(__name__)


def njit(
    signature: Any = None, *, cache: bool = False, **options: Any
) -> Callable[[Callable[..., Any]], Any]:
    """Return `numba.njit` of the same arguments; ``cache`` keeps the machine code in our store."""
    if not cache:
        return numba.njit(signature, **options)  # type: ignore[no-any-return]

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        if numba.config.DISABLE_JIT:
            return dispatcher  # the plain function
        dispatcher._cache = _Store(function)  # as numba's `enable_caching` does
        if signature is not None:
            dispatcher.compile(signature)
            dispatcher.disable_compile()
        return dispatcher

    return compiled


def require_compiler() -> None:
    """Raise ConfigError if numba was told to compile nothing."""
    if numba.config.DISABLE_JIT:
        raise ConfigError(
            "NUMBA_DISABLE_JIT is set: pictures would be decoded by uncompiled loops, minutes for "
            "each. Unset it (`unset NUMBA_DISABLE_JIT`) and start again"
        )


class _Store(NullCache):  # type: ignore[misc]  # numba is untyped
    """The stored machine code of one function: what numba asks before it compiles."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._source = _source_digest(Path(function.__code__.co_filename))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function for a signature, or None if it is not stored."""
        target_context.refresh()
        key = (sig, target_context.codegen().magic_tuple())
        stored = _read(self._path(key))
        if stored is None:
            return None
        # Unpickling can run anything, as can the machine code itself: this is done with files that
        # are whole, out of a folder that no other user can write to (see `_private`), never with a
        # file received.
        found, reduced = pickle.loads(stored)
        return CompileResult._rebuild(target_context, *reduced) if found == key else None

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Store a compiled function; one that holds addresses of this process is left out."""
        if not _holds_addresses(cres):
            key = (sig, cres.codegen.magic_tuple())
            _write(self._path(key), dumps((key, cres._reduce())))

    def _path(self, key: tuple[Any, ...]) -> Path:
        depends = repr((key, self._source, _tools()))
        return _folder() / f"{self._name}-{hashlib.sha256(depends.encode()).hexdigest()[:16]}.code"


@functools.cache
def _source_digest(file: Path) -> str:
    """Return the SHA-256 of everything of ours that a file's machine code is made from."""
    package = Path(__file__).parent
    together = [package / name for name in TOGETHER]
    files = together if file in together else [file]
    return hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()


@functools.cache
def _tools() -> str:
    """Return the versions that machine code and its file's format depend on, and its options."""
    names = ("numba", "llvmlite", "numpy", "ffcv")
    versions = map(metadata.version, names)
    return " ".join([sys.implementation.cache_tag or "", *versions, *sorted(FAST_SUMS)])


@functools.cache
def _folder() -> Path:
    return store_folder()


def store_folder() -> Path:
    """Return a folder for machine code: the user's, or with a warning one of this process alone."""
    try:
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # By its specification a relative one is none: it would be another in each folder.
        users = given if given.is_absolute() else Path.home() / ".cache"
        return _private(Path(numba.config.CACHE_DIR or users) / "harl_fast")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        _log.warning(
            "no place to keep compiled code (%s): each process compiles the decoder again, half a "
            "minute or more. Set XDG_CACHE_HOME to a folder of your own that can be written to",
            error,
        )
    alone = tempfile.TemporaryDirectory(prefix="harl_fast-")  # removed with the process
    _alone.append(alone)
    return Path(alone.name)


_alone: list[tempfile.TemporaryDirectory[str]] = []


def _private(folder: Path) -> Path:
    """Return a folder, made if it is missing; OSError unless it is this user's to write alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    if facts.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user, whose code would be run")
    if facts.st_mode & 0o022:
        raise PermissionError(
            f"{folder} can be written to by other users, whose code would be run: `chmod go-w` it"
        )
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to")
    return folder


def _read(path: Path) -> bytes | None:
    """Return a file's content, or None if there is none; a damaged file is removed."""
    try:
        with open_regular(path) as stream:
            content = stream.read()
        checksum, stored = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if hashlib.sha256(stored).digest() == checksum:
            return stored
        _tell_damaged(path.parent)
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        _tell_lost(f"{path} cannot be read: {error.strerror or error}")
    return None


def _write(path: Path, stored: bytes) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(hashlib.sha256(stored).digest() + stored)
    except OSError as error:
        _tell_lost(f"{path.parent} cannot be written to: {error.strerror or error}")


@functools.cache  # said once
def _tell_damaged(folder: Path) -> None:
    _log.warning(
        "damaged files of compiled code in %s (cut short or changed) are removed and made again: "
        "half a minute or more, once",
        folder,
    )


@functools.cache  # each said once
def _tell_lost(what: str) -> None:
    _log.warning("%s. Its code is compiled again at each start, half a minute or more", what)
