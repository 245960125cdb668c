"""Checksums of whole containers against hashlib's of the same bytes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from harl_fast.data.container import digest
from harl_fast.data.container.digest import file_digest, has_digest
from harl_fast.files import Progress


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(digest, "PIECE_BYTES", 2 << 20)
    monkeypatch.setattr(digest, "usable_cores", lambda: 4)
    path = tmp_path / "x.beton"
    path.write_bytes(np.random.default_rng(0).bytes((9 << 20) + 5))
    return path


def test_a_large_file_is_hashed_by_pieces(file: Path) -> None:
    data, size = file.read_bytes(), 2 << 20
    pieces = [hashlib.sha256(data[at : at + size]).digest() for at in range(0, len(data), size)]
    with Progress(9, label="x", unit="MiB", stream=io.StringIO()) as progress:
        found = file_digest(file, progress=progress)
    assert found == hashlib.sha256(b"".join(pieces)).hexdigest() + ":pieces"
    assert progress.done == 9
    assert has_digest(file, found)


@pytest.mark.parametrize("place", [0, 5 << 20, (9 << 20) + 4])
def test_one_changed_byte_is_found(file: Path, place: int) -> None:
    known, once = file_digest(file), hashlib.sha256(file.read_bytes()).hexdigest()
    assert has_digest(file, once)  # as older containers have it
    with open(file, "r+b") as stream:
        stream.seek(place)
        stream.write(bytes([255 - file.read_bytes()[place]]))
    assert not has_digest(file, known) and not has_digest(file, once)


def test_a_file_of_one_piece_has_its_plain_checksum(file: Path) -> None:
    file.write_bytes(b"x" * (2 << 20))
    assert file_digest(file) == hashlib.sha256(b"x" * (2 << 20)).hexdigest()
    assert has_digest(file, file_digest(file, threads=1))
