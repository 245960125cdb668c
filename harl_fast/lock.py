"""One writer at a time: a lock file within or beside an output that says which process writes it.

The file is written whole under a name of its own and then linked to the lock's name. The link
fails if the name exists, on NFS too, and no reader ever finds a lock without its content, as it
could after creating the file exclusively and writing to it; that is left for file systems without
hard links. A kernel's lock on the file would end with its process by itself, but is missing on
some shared file systems and is inherited by forked workers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from harl_fast.errors import HarlError, OutputError, explain
from harl_fast.files import to_stderr
from harl_fast.host import utc_time
from harl_fast.supervision import Process, boot_id, pid_namespace, stat_fields

FOLDER_LOCK = ".writer.lock"
"""Name of the lock of a whole folder, within it."""
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_LONGEST = 200
"""Characters of a host or a command that a lock keeps."""
_SETTLED_S = 0.2
"""After which an object that another process wrote at the same time is seen."""
_HALF_WRITTEN_S = 1.0
"""How long a file that was created exclusively may stay without its content."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    token: str
    """Random hexadecimal digits, another for each taking."""
    host: str
    boot: str
    """Random name of this start of the kernel; empty where there is none."""
    namespace: str
    """In which ``pid`` holds: containers on one kernel count processes apart."""
    pid: int
    started: int
    """Start of the process in clock ticks since the kernel's; tells it from a later one of the
    same number. 0 if unknown."""
    time: float
    """When the lock was taken, Unix seconds."""
    command: str
    path: str = ""
    """Of the lock file, absolute, as it was taken; empty for an object of a store."""

    def __str__(self) -> str:
        since = utc_time(self.time)
        return f"process {self.pid} on {self.host} (since {since}: {self.command})"


class InUseError(HarlError):
    """Another process holds a lock, or may."""

    def __init__(self, owner: Owner, *, output: Path, lock: Path) -> None:
        self.owner = owner
        super().__init__(
            f"{output} is in use by {owner}. Wait until it ends or stop it; if it is gone for "
            f"sure, or writes on another machine what this is a copy of, delete {lock}"
        )


@dataclass(frozen=True)
class Lock:
    """A lock that this process has taken."""

    path: Path
    owner: Owner

    def still_held(self) -> bool:
        """Return whether the lock file is still there and names this taking.

        It does not once its folder was deleted or moved, or another process took it over. A file
        system that does not answer says nothing of that.
        """
        try:
            return _read(self.path) == self.owner
        except (NotADirectoryError, HarlError):
            return False
        except OSError:
            return True


@contextlib.contextmanager
def locked(path: Path, *, output: Path) -> Iterator[Lock]:
    """Hold the lock file ``path`` of an output; no other process does meanwhile.

    A lock whose process is known to be gone (killed, or the machine was restarted), or to hold
    another file that this is a copy of, is taken over, which is printed. Raises InUseError if that
    process is, or may be, still there.
    """
    own, new_folder = _this_process(path), not path.parent.exists()
    try:
        _take(path, own, output=output)
    except OSError as error:
        if new_folder:
            with contextlib.suppress(OSError):
                path.parent.rmdir()
        error.filename = str(path)
        raise OutputError(f"{output} cannot be written to: {explain(error)}") from error
    try:
        yield Lock(path, own)
    finally:
        if os.getpid() == own.pid:  # not in a forked process that leaves by an exception
            _release(path, own, with_folder=new_folder)


@contextlib.contextmanager
def locked_object(
    read: Callable[[], bytes | None],
    write: Callable[[bytes], None],
    remove: Callable[[], None],
    *,
    output: str,
) -> Iterator[None]:
    """Hold a lock that is an object of a store, which knows no links: weaker than `locked`.

    Two processes that take it in the same moment write over each other; each therefore looks again
    whose it is. Raises HarlError naming the owner if that is another process, unless it is known to
    be gone.
    """
    own = _this_process()

    def owner() -> Owner | None:
        data = read()
        try:
            return None if data is None else _parse(data)
        except (ValueError, RecursionError) as error:
            raise HarlError(f"{output} is no lock of this program: delete it") from error

    def refuse(other: Owner) -> None:
        raise HarlError(
            f"{output}: in use by {other}. Wait until it ends or stop it; if it is gone for sure, "
            f"delete that object"
        )

    other = owner()
    if other is not None and not _gone(other):
        refuse(other)
    write(json.dumps(asdict(own)).encode())
    time.sleep(_SETTLED_S)
    other = owner()
    if other is not None and other != own:
        refuse(other)
    try:
        yield
    finally:
        if owner() == own:
            remove()


def lock_beside(output: Path) -> Path:
    """Return the lock of a single file."""
    return output.with_name(f".{output.name}.lock")


def holder(path: Path) -> Owner | None:
    """Return who holds a lock, unless that process is known to be gone or to hold another file."""
    other = _read(path)
    return None if other is None or _gone(other) or _copied(path, other) else other


def discard_folder(folder: Path) -> None:
    """Delete a folder with all that is in it. Raises HarlError if another process writes there."""
    with locked(folder / FOLDER_LOCK, output=folder):
        shutil.rmtree(folder)


def write_new(path: Path, text: str) -> bool:
    """Write ``text`` under ``path`` in one atomic step, unless the name exists; return whether."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name.lstrip('.')}.{secrets.token_hex(8)}.tmp")
    try:
        _write_exclusively(temporary, text)
        try:
            os.link(temporary, path)
        except OSError as error:
            if temporary.stat().st_nlink == 2:
                return True  # made, but the server's answer was lost
            if error.errno == errno.EEXIST:
                return False
            if error.errno in _NO_LINKS:
                return _write_exclusively(path, text)
            raise
        return True
    except OSError as error:
        error.filename = str(path)  # neither the temporary name nor, on a full disk, none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _write_exclusively(path: Path, text: str) -> bool:
    try:
        stream = open(path, "x", encoding="utf-8")  # noqa: SIM115  # closed below
    except FileExistsError:
        return False
    with stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    return True


def _take(path: Path, own: Owner, *, output: Path) -> None:
    """Write ``own`` under ``path``, over a dead owner if there is one.

    The right to replace a dead owner is a lock by itself, named after that owner's token and
    taken in the same way, so that of several processes one does it; and renaming it to ``path``
    replaces the old lock and gives up the right in one step.
    """
    while not write_new(path, json.dumps(asdict(own), indent=2) + "\n"):
        other = _read(path)
        if other is None:
            continue  # released meanwhile
        gone = _gone(other)
        if not gone and not _copied(path, other):
            raise InUseError(other, output=output, lock=path)
        right = path.with_name(f".{other.token}.lock")
        _take(right, own, output=output)
        try:
            if _read(path) == other:
                os.replace(right, path)
                why = "is gone" if gone else f"writes to {Path(other.path).parent}"
                to_stderr(f"note: {path} is taken over from {other}, which {why}")
                return
        finally:
            right.unlink(missing_ok=True)


def _release(path: Path, own: Owner, *, with_folder: bool) -> None:
    """Remove the lock, and the folder that was made for it if nothing else came into it."""
    try:
        if _read(path) == own:
            path.unlink()
        if with_folder and not any(path.parent.iterdir()):
            path.parent.rmdir()
    except FileNotFoundError:
        pass  # the work has removed the folder itself
    except (OSError, HarlError) as error:
        to_stderr(f"warning: {path} cannot be removed ({error}); delete it")


def _read(path: Path) -> Owner | None:
    """Return a lock's owner, or None if it is not taken. Raises HarlError if it does not read."""
    deadline = time.monotonic() + _HALF_WRITTEN_S
    while True:
        try:
            return _parse(_content(path))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            if time.monotonic() > deadline:
                raise HarlError(
                    f"{path} is no lock that this program wrote. Delete it if no process writes "
                    f"there"
                ) from error
        time.sleep(0.05)


def _content(path: Path) -> bytes:
    """Return the file's first bytes; neither a link nor a pipe of that name is followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)


def _parse(content: bytes) -> Owner:
    """Return the owner that a lock names. Raises ValueError, or RecursionError for deep nesting."""
    tree = json.loads(content)
    kinds = Owner.__dataclass_fields__.values()
    if isinstance(tree, dict):
        tree.setdefault("path", "")  # of earlier versions
    names = {"str": str, "int": int, "float": float}
    if not isinstance(tree, dict) or any(
        type(tree.get(kind.name)) is not names[str(kind.type)] for kind in kinds
    ):
        raise ValueError("another form")
    owner = Owner(**{kind.name: tree[kind.name] for kind in kinds})
    texts = (owner.token, owner.host, owner.boot, owner.namespace, owner.command)
    if (
        not re.fullmatch("[0-9a-f]{32}", owner.token)  # becomes part of a file name
        or not 0 < owner.pid < 2**31
        or not 0 <= owner.time < 2**33
        or not all(text.isprintable() and len(text) <= _LONGEST for text in texts)
    ):
        raise ValueError("impossible values")
    return owner


def _gone(owner: Owner) -> bool:
    """Return whether a lock's process is known to have ended."""
    here = _this_process()
    if owner.boot != here.boot:
        # Of an earlier start of this machine. One of the same name elsewhere may be up for longer.
        return owner.host == here.host and owner.time < time.time() - _uptime_s()
    if owner.namespace != here.namespace or (not here.boot and owner.host != here.host):
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, so it exists
    try:
        fields = stat_fields(owner.pid)
    except OSError:  # too many open files, for instance
        fields = []
    return bool(fields) and (fields[0] in "ZX" or owner.started not in (0, int(fields[19])))


def _copied(path: Path, owner: Owner) -> bool:
    """Return whether a lock file was copied, with its folder, from one that its owner still holds.

    By the number of the file, too: the same one may have several paths.
    """
    original = Path(owner.path)
    try:
        held = bool(owner.path) and _read(original) == owner
        return held and original.stat().st_ino != path.stat().st_ino
    except (OSError, ValueError, HarlError):
        return False


def _this_process(path: Path | None = None) -> Owner:
    own = Process.of(os.getpid())
    words = [sys.executable, *sys.argv] if sys.argv and sys.argv[0] else [sys.executable]
    return Owner(
        token=secrets.token_hex(16),
        host=_printable(socket.gethostname()),
        boot=_printable(boot_id()),
        namespace=_printable(pid_namespace()),
        pid=os.getpid(),
        started=0 if own is None else int(own.started),
        time=time.time(),
        command=_printable(shlex.join(words)),
        path="" if path is None else os.path.join(os.path.realpath(path.parent), path.name),
    )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:_LONGEST]


def _uptime_s() -> float:
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
