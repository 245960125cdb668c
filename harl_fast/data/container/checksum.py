"""The checksum of a sample's stored bytes: XXH64, at some 10 GB/s per core without special code.

The image and the mask are summed one by one, as they lie in the container. The verifier and the
loader compare the same sums, the loader a sample's two as one. Containers written before have
CRC-32, which only the verifier compares: zlib's takes three times as long.

XXH64: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from harl_fast.jit import njit

Kind = np.dtype[np.uint64 | np.uint32]

CHECKED: Kind = np.dtype("<u8")
"""dtype of the sums that the loader compares: XXH64."""
CRC32: Kind = np.dtype("<u4")
"""dtype of the sums of containers written before."""

_PRIME_1, _PRIME_2 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3, _PRIME_4 = np.uint64(0x165667B19E3779F9), np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5, _ZERO = np.uint64(0x27D4EB2F165667C5), np.uint64(0)


def stored_sum(data: bytes, kind: Kind = CHECKED) -> int:
    """Return the checksum of stored bytes; kind: dtype of the sums that it is compared with."""
    if kind == CRC32:
        return zlib.crc32(data)
    return int(xxh64(np.frombuffer(data, np.uint8)))


def joint_sum(image: Any, mask: Any) -> Any:
    """Return one sum for the sums of an image and its mask; all uint64 or (N,) uint64."""
    return (image << np.uint64(1) | image >> np.uint64(63)) ^ mask


_joint_sum = njit(inline="always")(joint_sum)


@njit(cache=True)
def sum_differs(image, mask, joint):
    """Return whether stored bytes (N,), (M,) uint8 have another sum than a sample's `joint_sum`."""
    return _joint_sum(xxh64(image), xxh64(mask)) != joint


@njit(inline="always")
def _rotated(word, bits):
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@njit(inline="always")
def _round(lane, word):
    return _rotated(lane + word * _PRIME_2, 31) * _PRIME_1


@njit(inline="always")
def _merged(value, lane):
    return (value ^ _round(_ZERO, lane)) * _PRIME_1 + _PRIME_4


@njit(cache=True, nogil=True)
def xxh64(data):
    """Return the XXH64 of (N,) uint8 with seed 0, as uint64."""
    size, at = data.shape[0], data.shape[0] // 32 * 32
    value = _PRIME_5
    if at > 0:
        a, b, c, d = _PRIME_1 + _PRIME_2, _PRIME_2, _ZERO, _ZERO - _PRIME_1
        words = data[:at].view(np.uint64)  # at any address: x86-64 and ARMv8 load it as it lies
        for i in range(0, words.shape[0], 4):
            a, b = _round(a, words[i]), _round(b, words[i + 1])
            c, d = _round(c, words[i + 2]), _round(d, words[i + 3])
        value = _rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)
        value = _merged(_merged(_merged(_merged(value, a), b), c), d)
    value += np.uint64(size)
    while at + 8 <= size:
        word = data[at : at + 8].view(np.uint64)[0]
        value = _rotated(value ^ _round(_ZERO, word), 27) * _PRIME_1 + _PRIME_4
        at += 8
    if at + 4 <= size:
        half = np.uint64(data[at : at + 4].view(np.uint32)[0])
        value = _rotated(value ^ (half * _PRIME_1), 23) * _PRIME_2 + _PRIME_3
        at += 4
    while at < size:
        value = _rotated(value ^ (np.uint64(data[at]) * _PRIME_5), 11) * _PRIME_1
        at += 1
    value = (value ^ (value >> np.uint64(33))) * _PRIME_2
    value = (value ^ (value >> np.uint64(29))) * _PRIME_3
    return value ^ (value >> np.uint64(32))
