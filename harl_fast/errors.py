"""Errors that a user can act on, and how values stand in their messages."""

from __future__ import annotations

import difflib
import errno
import os
import reprlib
from collections.abc import Iterable, Sequence


class HarlError(Exception):
    """A failure whose message says what was found, where, and what to do.

    Each argument is a line of it: none that a file's name or content could break.
    """

    def __str__(self) -> str:
        return "\n  ".join(one_line(str(line)) for line in self.args)


class ConfigError(HarlError):
    """A configuration file, key or combination that cannot be used."""


class DataError(HarlError):
    """A data set, container or sample that cannot be used."""


class CheckpointError(HarlError):
    """A checkpoint or run folder that cannot be used."""


class OutputError(HarlError):
    """A place where a program was to write and cannot."""


_REMEDIES = {
    errno.ENOSPC: "Free space there",
    errno.EDQUOT: "Free space there: your quota is used up",
    errno.EFBIG: "Raise the limit (`ulimit -f`), or choose a file system for files of that size",
    errno.EROFS: "Choose a place on a disk that can be written to",
    errno.EACCES: "Give this user the rights, or choose another place",
    errno.EPERM: "Give this user the rights, or choose another place",
    errno.ENOTDIR: "A part of this path is a file: move it away, or choose another path",
    errno.EISDIR: "A folder of this name is in the way: move it away, or choose another one",
    errno.ELOOP: "Links lead in a circle, or one stands where none is followed: remove it",
    errno.EEXIST: "A file or broken link of this name is in the way: move it, or choose another",
    errno.ENOTEMPTY: "There are files in this folder: move them away, or choose another one",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.EMFILE: "Let this process open more files (`ulimit -n 4096`), or use fewer workers",
    errno.ENFILE: "Close other programs, or raise the system's limit (fs.file-max)",
    errno.ENOMEM: "Close other programs, or use fewer workers",
    errno.EAGAIN: "Let this user start more processes (`ulimit -u`), or use fewer workers",
    errno.EIO: "The disk or the network fails: see `dmesg`",
    errno.ESTALE: "If the system lost it, mount it again",
}


def explain(error: OSError) -> str:
    """Return in one line why a program ended: `why`, and to run it again."""
    return f"{why(error)}, then run the command again"


def why(error: OSError) -> str:
    """Return in one line what failed: the file, the system's reason, and what to do."""
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    reason = error.strerror or (str(error.args[0]) if error.args else type(error).__name__)
    remedy = _REMEDIES.get(error.errno or 0, "Check that it is there and can be used")
    if _out_of_inodes(error):
        remedy = "It takes no more files, however small (`df -i`): remove some there"
    return one_line(f"{place}{reason}. {remedy}")


def _out_of_inodes(error: OSError) -> bool:
    """Return whether what is full has no inode for one more file, as many small ones make it."""
    if error.errno != errno.ENOSPC or not isinstance(error.filename, str | bytes):
        return False
    try:
        facts = os.statvfs(os.path.dirname(os.path.abspath(os.fsdecode(error.filename))))
    except OSError:
        return False
    return facts.f_files > 0 and facts.f_favail == 0


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest valid name, or an empty string."""
    close = difflib.get_close_matches(name[:80], list(valid), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def one_line(text: str) -> str:
    """Return a text with everything that does not print as backslash escapes.

    Line breaks, terminal sequences, marks that turn the direction of writing, and bytes of file
    names that are not UTF-8 are such.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def few(texts: Sequence[str], most: int = 5) -> str:
    """Return the first texts with commas between; an ellipsis tells that there are more."""
    return ", ".join(texts[:most]) + ", ..." * (len(texts) > most)


class _Brief(reprlib.Repr):
    """A repr that takes neither time nor memory by the size of its value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 76
        self.maxlong = 40

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out whole numbers of over 4300 digits.
        return super().repr_int(x, level) if x.bit_length() < 1000 else "a huge number"


_BRIEF = _Brief()


def shown(value: object) -> str:
    """Return a value as it stands in messages: its repr on one line, of at most 80 characters."""
    text = one_line(_BRIEF.repr(value))
    return text if len(text) <= 80 else f"{text[:76]} ..."
