"""No header makes our parser and libjpeg see two pictures, and no file writes out of bounds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harl_fast.data.views import jpeg as jpegfile
from harl_fast.data.views.jpeg import BAD_JPEG, OK, UNSUPPORTED
from tests.data.jpegfuzz import (
    CRAFTED,
    SAMPLES,
    Turbo,
    bases,
    crafted_beton,
    encoded,
    hidden,
    our_header,
    tampered,
)

ROOT = Path(__file__).parents[2]


def parsed(data: bytes) -> int:
    layout = np.empty(jpegfile.LAYOUT, np.int64)
    return int(jpegfile.parse_jpeg(np.frombuffer(data, np.uint8), layout))


def agree(count: int, seed: int) -> int:
    """Compare both readings of ``count`` tampered files; return how many our parser accepted."""
    rng, turbo, accepted = np.random.default_rng(seed), Turbo(), 0
    for number in range(count):
        data = tampered(rng)
        ours, theirs = our_header(data), turbo.header(data)
        if ours is not None and theirs is not None:
            assert ours == theirs, (seed, number)
            accepted += 1
    return accepted


def decode_guarded(count: int, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.jpegfuzz", str(count), str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])  # SIGSEGV would be -11
    assert "whole 0" in done.stdout and "whole 2" in done.stdout


def test_whatever_our_parser_accepts_libjpeg_reads_alike() -> None:
    assert agree(5000, 0) > 500


def test_tampered_files_leave_guard_pages_alone() -> None:
    decode_guarded(2000, 0)


@pytest.mark.slow
def test_whatever_our_parser_accepts_libjpeg_reads_alike_100000() -> None:
    assert agree(100_000, 1) > 10_000


@pytest.mark.slow
def test_tampered_files_leave_guard_pages_alone_100000() -> None:
    decode_guarded(100_000, 1)


@pytest.mark.parametrize("marker", [*range(0xD0, 0xD8), 0x01])
def test_a_jpeg_hidden_behind_a_marker_without_length_is_refused(marker: int) -> None:
    data = hidden(encoded(0, 200, 300), encoded(1, 40, 60), marker)
    found = Turbo().header(np.frombuffer(data, np.uint8))
    assert found is not None and found[:2] == (300, 200)  # what libjpeg would write
    assert parsed(data) == BAD_JPEG


@pytest.mark.parametrize(
    ("what", "inserted"),
    [
        ("start", b"\xff\xd8"),
        ("end", b"\xff\xd9"),
        ("stuffed zero", b"\xff\x00"),
        ("stray bytes", b"\x00\x00"),
        ("number of lines", b"\xff\xdc\x00\x04\x00\x28"),
        ("reserved", b"\xff\x02\x00\x04\x00\x00"),
        ("extension", b"\xff\xf0\x00\x04\x00\x00"),
        ("restart interval of another length", b"\xff\xdd\x00\x05\x00\x04\x00"),
        ("empty length", b"\xff\xfe\x00\x01"),
        ("second frame", bases()[0][bases()[0].index(b"\xff\xc0") :][:19]),
    ],
)
def test_what_may_not_stand_in_a_header_is_damage(what: str, inserted: bytes) -> None:
    sound = bases()[0]
    place = sound.index(b"\xff\xda")
    assert parsed(sound) == OK
    assert parsed(sound[:place] + inserted + sound[place:]) == BAD_JPEG, what


def test_arithmetic_coding_and_second_scans_are_not_read() -> None:
    sound = bases()[0]
    place = sound.index(b"\xff\xda")
    conditioning = b"\xff\xcc\x00\x04\x00\x10"
    assert parsed(sound[:place] + conditioning + sound[place:]) == UNSUPPORTED
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    assert parsed(sound[:place] + scan + sound[place + 14 :]) == UNSUPPORTED


def test_a_header_that_turbojpeg_reads_otherwise_is_damage_and_the_decoder_lives_on() -> None:
    """The second line of defence, tried by a layout that is not the file's."""
    sound = np.frombuffer(bases()[0], np.uint8)
    layout = np.empty(jpegfile.LAYOUT, np.int64)
    planes, excerpt = np.zeros(1 << 18, np.uint8), np.zeros(1 << 16, np.uint8)
    window, whole = np.empty(jpegfile.WINDOW, np.int64), (0, 0, 40, 72)
    decoder = np.array([jpegfile.open_decoder()], np.uintp)

    def decoded(data: np.ndarray, **changes: int) -> int:
        assert jpegfile.parse_jpeg(data, layout) == OK
        for name, value in changes.items():
            layout[getattr(jpegfile, name)] = value
        return int(jpegfile.decode_planes(decoder, data, layout, whole, excerpt, planes, window))

    broken = sound.copy()
    broken[bases()[0].index(b"\xff\xc4") + 5] = 255  # more codes than the table can hold
    for changes in ({"WIDTH": 71}, {"HEIGHT": 48}, {"FACTOR_X": 1}, {"FACTOR_Y": 1}):
        assert decoded(sound, **changes) == BAD_JPEG, changes
        assert decoded(sound) == OK
    assert decoded(sound, CHANNELS=1) == BAD_JPEG and decoded(broken) == BAD_JPEG
    assert decoded(sound) == OK
    planes = planes[: jpegfile.planes_size(40, 72) // 3]
    assert decoded(sound) == BAD_JPEG  # no room for its chroma
    jpegfile.close_decoder(decoder[0])


@pytest.fixture(scope="module")
def crafted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crafted_beton(tmp_path_factory.mktemp("crafted"))


LOAD = """
import sys
from pathlib import Path
from harl_fast.data.loader import EvalLoader
from harl_fast.errors import DataError

path = Path(sys.argv[1])
print(sum(len(batch.ids) for batch in EvalLoader(path, size_px=32, damaged="replace")))
try:
    list(EvalLoader(path, size_px=32))
except DataError as error:
    print(error)
"""


def test_the_loader_raises_or_replaces_for_a_crafted_sample(crafted: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(crafted)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])  # SIGSEGV would be -11
    count, error = done.stdout.splitlines()
    assert int(count) == SAMPLES
    assert f"sample {CRAFTED} (sample{CRAFTED}.jpg): its JPEG data are damaged" in error
