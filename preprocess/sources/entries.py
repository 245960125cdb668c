"""What lies in tar and zip archives: names, and where the bytes are; nothing is unpacked."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from harl_fast.errors import one_line
from harl_fast.files import UnusualFileError, open_regular
from preprocess.images.members import DEFLATED, STORED

_OF_BROKEN_FILES = (
    tarfile.TarError, zipfile.BadZipFile, NotImplementedError, RecursionError,
    ArithmeticError, EOFError, LookupError, ValueError, struct.error, UnusualFileError,
)  # fmt: skip
"""What `tarfile` and `zipfile` raise on damaged and crafted archives."""


_HEADER_BYTES = 512
_ZIP_START, _DOS = b"PK\3\4", 0
_MOST = 1 << 62
"""No file has more bytes."""


class BrokenArchiveError(Exception):
    """An archive that is not whole; the message is the reason."""


@contextlib.contextmanager
def _complaining() -> Iterator[None]:
    try:
        yield
    except _OF_BROKEN_FILES as error:
        raise BrokenArchiveError(str(error) or type(error).__name__) from error


class Entry(NamedTuple):
    """One member of an archive."""

    name: str
    """Its path, normalized: without ``./`` before it and ``/`` after it."""
    place: tuple[int, ...] = ()
    """Arguments of `FileRange` or `ZipMember` after the archive's path; empty if it has no bytes
    that can be read."""
    reason: str = ""
    """Why it has none; empty for folders."""


def tar_entries(path: Path) -> Iterator[Entry]:
    """Yield a tar archive's members in their order; raises `BrokenArchiveError`, also at its end.

    A hard link is what it links to.
    """
    regular: dict[str, tuple[int, ...]] = {}
    with _complaining(), open_regular(path) as stream, _opened_tar(stream) as tar:
        file_bytes = os.fstat(stream.fileno()).st_size
        while info := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
            name = posixpath.normpath(info.name)
            plain = info.isreg() and info.sparse is None
            if tar.offset <= info.offset or (plain and info.offset_data + info.size > file_bytes):
                raise tarfile.ReadError(f"{one_line(name)} ends outside of it")
            if reason := _leads_out(name):
                yield Entry(name, (), reason)
            elif plain:
                regular[name] = (info.offset_data, info.size)
                yield Entry(name, regular[name])
            elif info.islnk() and (linked := regular.get(posixpath.normpath(info.linkname))):
                yield Entry(name, linked)
            else:
                yield Entry(name, (), "" if info.isdir() else _kind_of(info))
        # To `tarfile`, a damaged header is the end, and so is the end of the first of two archives.
        stream.seek(tar.offset)
        if tar.offset >= file_bytes:
            raise tarfile.ReadError("it has no mark of its end: it may have been cut short")
        while block := stream.read(1 << 20):
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"its members end at byte {tar.offset:,}, but not its data")


def _opened_tar(stream: BinaryIO) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header)


class _Header(tarfile.TarInfo):
    """A header of which only name and size are read, in a third of the time, where it is usual."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        usual = buf[156:157] in (tarfile.REGTYPE, tarfile.XHDTYPE) and len(buf) == _HEADER_BYTES
        size, checksum = (buf[at:end].rstrip(b" \0") for at, end in ((124, 136), (148, 156)))
        if not (usual and size.isdigit() and checksum.isdigit()):
            return super().frombuf(buf, encoding, errors)
        try:
            header = cls()
            header.size = int(size, 8)
            sound = int(checksum, 8) == sum(buf) - sum(buf[148:156]) + 8 * ord(" ")
        except ValueError:
            sound = False
        if not sound:
            return super().frombuf(buf, encoding, errors)
        name, prefix = (buf[at:end].partition(b"\0")[0] for at, end in ((0, 100), (345, 500)))
        header.name = (prefix + b"/" + name if prefix else name).decode(encoding, errors)
        header.type = bytes(buf[156:157])
        return header


def _kind_of(info: tarfile.TarInfo) -> str:
    if info.islnk() or info.issym():
        return f"a link to {one_line(info.linkname)}, which is not followed"
    return "a sparse file, which is not read" if info.sparse is not None else "no regular file"


def zip_entries(path: Path) -> Iterator[Entry]:
    """Yield a zip archive's members in their order; raises `BrokenArchiveError`."""
    with _complaining(), open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
        file_bytes = os.fstat(stream.fileno()).st_size
        first = min((info.header_offset for info in archive.infolist()), default=0)
        stream.seek(0)
        if first and stream.read(4) == _ZIP_START:
            raise zipfile.BadZipFile("another archive stands before it in the file")
        none_parted = not any("/" in info.filename for info in archive.infolist())
        for info in archive.infolist():
            # Some programs for DOS part folders their own way, and not all say where they ran.
            dos = none_parted or info.create_system == _DOS
            name = posixpath.normpath(info.filename.replace("\\", "/") if dos else info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            reason = _leads_out(name)
            if info.is_dir():
                pass
            elif info.flag_bits & 1:
                reason = reason or "encrypted"
            elif kind not in (0, stat.S_IFREG):
                reason = reason or "a link or no regular file"
            elif info.compress_type not in (STORED, DEFLATED):
                reason = reason or f"compressed by method {info.compress_type}, not by deflate"
            elif info.header_offset + info.compress_size > file_bytes or info.file_size > _MOST:
                reason = reason or "damaged: its bytes lie outside the archive"
            if reason or info.is_dir():
                yield Entry(name, (), reason)
            else:
                sizes = (info.compress_size, info.file_size)
                yield Entry(name, (info.header_offset, *sizes, info.CRC, info.compress_type))


def _leads_out(name: str) -> str:
    out = name == ".." or name.startswith(("/", "../"))
    return "its name leads out of the archive" if out else ""
