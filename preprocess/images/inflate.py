"""How much a zlib stream holds, without holding it unless that is asked for."""

from __future__ import annotations

import zlib

_CHUNK_BYTES = 1 << 16
"""Bytes inflated at once: a few of a file's bytes may stand for gigabytes."""


class Inflation:
    """The size of a zlib stream whose bytes come in pieces; it ends above ``most`` bytes.

    kept: receives the inflated bytes in pieces.
    """

    def __init__(self, most: int, kept: list[bytes] | None = None) -> None:
        self.most, self.kept = most, kept
        self.size = 0
        """Bytes inflated until now, at most `_CHUNK_BYTES` more than ``most``."""
        self._stream = zlib.decompressobj()

    def add(self, data: bytes) -> None:
        """Go on with the stream's next bytes; raise `zlib.error` if they cannot be."""
        while not self.ended:
            got = self._stream.decompress(data, _CHUNK_BYTES)
            data = self._stream.unconsumed_tail
            self.size += len(got)
            if self.kept is not None:
                self.kept.append(got)
            if not data and len(got) < _CHUNK_BYTES:
                break

    @property
    def ended(self) -> bool:
        """Whether more bytes make no difference: the stream is whole, or too much came already."""
        return self._stream.eof or self.size > self.most

    def problem(self, least: int) -> str:
        """Return what is wrong with a stream, all of whose bytes came, of ``least`` to ``most``."""
        if self.size > self.most:
            return "hold more bytes than its size needs"
        if not self._stream.eof:
            return "end before their checksum"
        return "hold fewer bytes than its size needs" if self.size < least else ""
