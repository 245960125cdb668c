"""Images that are no files of their own: what such a reference is, and members of archives."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from harl_fast.files import UnusualFileError, open_regular
from preprocess.images.arrays import Pixels

_ZIP_HEAD = struct.Struct("<4s22xHH")
"""Of a zip member's own header: its mark, and the lengths of name and extra field after it."""
STORED, DEFLATED = 0, 8
"""The two ways in which zip archives hold their members that are read here."""


class Member(Protocol):
    """Where one image's bytes lie; goes to the workers, hence small and picklable.

    Its items are the file that holds it, then what tells it from others there.
    """

    def __iter__(self) -> Iterator[Any]: ...

    @property
    def path(self) -> Path:
        """The file that holds it."""

    @property
    def name(self) -> str:
        """What a message calls it, unlike any other's."""

    @property
    def size(self) -> int:
        """Bytes; of a table's cell an estimate."""

    def open(self, limit: int) -> BinaryIO:
        """Return the image file's bytes as a seekable stream, which the caller closes.

        `UnusualFileError` for more than ``limit`` bytes, or for damage.
        """


FileRef = Path | Member
"""One image as a file holds it: the file itself, or where its bytes lie in another."""
ImageRef = FileRef | Pixels
"""One image: such a file, or (H, W, 3) uint8 pixels."""


class FileRange(NamedTuple):
    """Consecutive bytes of a file: a member of a tar archive."""

    path: Path
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.path} at byte {self.offset}"

    def open(self, limit: int) -> BinaryIO:
        check_size(self.size, limit)
        return io.BytesIO(_read(self.path, self.offset, self.size))

    def head(self, count: int) -> bytes:
        """Return up to ``count`` bytes of its beginning."""
        return _read(self.path, self.offset, min(count, self.size))


class ZipMember(NamedTuple):
    """A member of a zip archive, which need not read the archive's directory again."""

    path: Path
    offset: int
    """Of the member's own header."""
    packed: int
    """Bytes in the archive."""
    size: int
    crc: int
    """CRC-32 of the unpacked bytes."""
    method: int
    """`STORED` or `DEFLATED`."""

    @property
    def name(self) -> str:
        return f"{self.path} at byte {self.offset}"

    def open(self, limit: int) -> BinaryIO:
        check_size(max(self.size, self.packed), limit)
        # One byte more than it should have shows a member that does not end there.
        data = self._unpacked(self.packed, self.size + 1)
        if len(data) != self.size or zlib.crc32(data) != self.crc:
            raise UnusualFileError("damaged: its bytes do not match the archive's checksum")
        return io.BytesIO(data)

    def head(self, count: int) -> bytes:
        """Return up to ``count`` bytes of its beginning."""
        return self._unpacked(min(self.packed, 64 + 2 * count), count)

    def _unpacked(self, packed: int, most: int) -> bytes:
        mark, *lengths = _ZIP_HEAD.unpack(_read(self.path, self.offset, _ZIP_HEAD.size))
        if mark != b"PK\3\4":
            raise UnusualFileError("damaged: the archive has no member where its directory says")
        data = _read(self.path, self.offset + _ZIP_HEAD.size + sum(lengths), packed)
        if self.method == STORED:
            return data[:most]
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, most)
        except zlib.error as error:
            raise UnusualFileError(f"damaged: {error}") from error


def written_ns(status: os.stat_result) -> int:
    """Return when a file was written in ns, as an int64: of years after 2262 the lower 64 bits."""
    return (status.st_mtime_ns + 2**63) % 2**64 - 2**63


def file_stamp(path: Path | str) -> tuple[int, int]:
    """Return a file's size in bytes and when it was written in ns; -1 of what is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, written_ns(status)


def place_print(member: Member, file_bytes: int) -> int:
    """Return 32 bits of where a member lies in its file, and of that file's size."""
    _, *place = member
    return zlib.crc32(repr((file_bytes, *place)).encode())


def check_size(size: int, limit: int) -> None:
    """Raise `UnusualFileError` for more than ``limit`` bytes, in the words of `open_regular`."""
    if size > limit:
        raise UnusualFileError(f"{size:,} bytes, more than {limit:,}")


def _read(path: Path, offset: int, size: int) -> bytes:
    with open_regular(path) as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) < size:
        raise UnusualFileError(f"damaged: {path.name} ends before it")
    return data


class Page(NamedTuple):
    """One page of a TIFF, or another image's file as it is."""

    file: FileRef
    page: int
    """From 0; always 0 of files that are no TIFF."""

    @property
    def path(self) -> Path:
        return self.file if isinstance(self.file, Path) else self.file.path

    @property
    def name(self) -> str:
        return f"{self.file if isinstance(self.file, Path) else self.file.name}#{self.page + 1}"

    @property
    def size(self) -> int:
        return self.file.stat().st_size if isinstance(self.file, Path) else self.file.size

    def open(self, limit: int) -> BinaryIO:
        """Open the whole file."""
        if isinstance(self.file, Path):
            return open_regular(self.file, limit=limit)
        return self.file.open(limit)


@dataclass(frozen=True)
class Members(Sequence[Member]):
    """N members of one kind as an array, a fifth of the memory that as many objects take."""

    kind: Callable[..., Member]
    places: list[tuple[Any, ...]]
    """First arguments of ``kind`` that many have in common: the archive's path."""
    numbers: npt.NDArray[np.int64]
    """(N, 1 + k): the index of the place, then the other k arguments."""
    forward: bool = False
    """Whether a member is reached by reading those before it: neighbours best go to one process."""

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> Members: ...
    def __getitem__(self, index: int | slice) -> Member | Members:
        if isinstance(index, slice):
            return replace(self, numbers=self.numbers[index])
        place, *rest = self.numbers[index].tolist()
        return self.kind(*self.places[place], *rest)

    def take(self, rows: npt.ArrayLike) -> Members:
        """Return the members of some rows, in that order."""
        return replace(self, numbers=self.numbers[np.asarray(rows, np.int64)])
