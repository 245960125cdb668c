"""Parts of JPEGs against Pillow's decode of the whole, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harl_fast.data.views import jpeg as jpegfile
from harl_fast.data.views.jpeg import BAD_JPEG, OK, UNSUPPORTED
from harl_fast.data.views.jpegscan import first_of_sound, judge_jpeg
from tests.betons import smooth_noise

SUBSAMPLING = {"4:4:4": (1, 1), "4:2:2": (1, 2), "4:2:0": (2, 2)}


def jpeg(seed: int = 0, height: int = 90, width: int = 130, mode: str = "RGB", **options):
    image = Image.fromarray(smooth_noise(seed, height, width)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 90, **options})
    return np.frombuffer(stream.getvalue(), np.uint8).copy()


def whole_planes(data: np.ndarray) -> np.ndarray:
    """Pillow's YCbCr of the whole picture; its luma is libjpeg's, untouched."""
    image = Image.open(io.BytesIO(data.tobytes()))
    image.draft("YCbCr" if image.mode == "RGB" else "L", None)
    return np.atleast_3d(np.asarray(image))


def parse(data: np.ndarray) -> tuple[int, np.ndarray]:
    layout = np.empty(jpegfile.LAYOUT, np.int64)
    return jpegfile.parse_jpeg(data, layout), layout


def decode(data: np.ndarray, union) -> tuple[int, np.ndarray, np.ndarray]:
    status, layout = parse(data)
    if status != OK:
        return status, layout, np.empty(0)
    size = (int(layout[jpegfile.HEIGHT]), int(layout[jpegfile.WIDTH]))
    excerpt = np.full(jpegfile.excerpt_size(data.size), 0xAA, np.uint8)
    planes = np.full(jpegfile.planes_size(*size), 77, np.uint8)
    window = np.empty(jpegfile.WINDOW, np.int64)
    decoder = np.array([jpegfile.open_decoder()], np.uintp)
    found = jpegfile.decode_planes(decoder, data, layout, union, excerpt, planes, window)
    jpegfile.close_decoder(decoder[0])
    return found, window, planes


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 20),
    size=st.tuples(st.integers(1, 100), st.integers(1, 140)),
    restarts=st.sampled_from([{}, *({"restart_marker_blocks": n} for n in (1, 2, 3, 4, 8, 50))]),
    subsampling=st.sampled_from(list(SUBSAMPLING)),
    grey=st.booleans(),
    data=st.data(),
)
def test_a_part_has_the_luma_of_the_whole(seed, size, restarts, subsampling, grey, data) -> None:
    height, width = size
    mode = "L" if grey else "RGB"
    options = {} if grey else {"subsampling": subsampling}
    encoded = jpeg(seed, height, width, mode, **options, **restarts)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom = data.draw(st.integers(top + 1, height))
    right = data.draw(st.integers(left + 1, width))
    status, window, planes = decode(encoded, (top, left, bottom, right))
    assert status == OK
    y, x, stride, rows = window.tolist()
    luma = planes[: rows * stride].reshape(rows, stride)
    expected = whole_planes(encoded)[top:bottom, left:right, 0]
    assert np.array_equal(luma[top - y : bottom - y, left - x : right - x], expected)


def test_a_part_has_the_chroma_of_the_whole() -> None:
    encoded = jpeg(3, 160, 256, subsampling="4:2:0", restart_marker_blocks=4)
    status, window, planes = decode(encoded, (50, 70, 100, 180))
    whole_status, _, whole = decode(encoded, (0, 0, 160, 256))
    assert status == whole_status == OK
    y, x, stride, rows = window.tolist()
    assert (rows, stride) < (160, 256) and y > 0 and x > 0  # it is a part indeed
    blue = planes[rows * stride :][: rows * stride // 4].reshape(rows // 2, stride // 2)
    all_blue = whole[160 * 256 :][: 80 * 128].reshape(80, 128)
    part = all_blue[y // 2 : (y + rows) // 2, x // 2 : (x + stride) // 2]
    assert np.array_equal(blue, part)


@pytest.mark.parametrize("restarts", [{}, {"restart_marker_blocks": 4}])
def test_a_cut_file_is_damaged(restarts) -> None:
    encoded = jpeg(0, 160, 256, **restarts)
    for keep in (0, 1, 3, 100, 700, encoded.size // 2, encoded.size - 2):
        assert decode(encoded[:keep].copy(), (0, 0, 160, 256))[0] == BAD_JPEG, keep


def test_a_lost_or_swapped_restart_marker_is_damage() -> None:
    encoded = jpeg(0, 160, 256, restart_marker_blocks=4)
    places = [
        i for i in range(encoded.size - 1) if encoded[i] == 255 and 208 <= encoded[i + 1] < 216
    ]
    for value in (0xD0 + 5, 0x00):
        broken = encoded.copy()
        broken[places[1] + 1] = value
        assert decode(broken, (0, 0, 20, 20))[0] == BAD_JPEG


@pytest.mark.parametrize(
    "before_end",
    [
        b"\xff\xd0",
        b"\xff\xd7",
        b"\xff\xfe\x00\x06note",
        b"\xff\xe5\x00\x06note",
        b"\xff\xff",
        b"\0" * 5,
    ],
)
def test_what_libjpeg_minds_not_before_the_end_is_no_damage(before_end: bytes) -> None:
    """Some encoders write one restart marker too many, or a segment behind the scan."""
    encoded = jpeg(2, 160, 256, restart_marker_blocks=4)
    odd = np.frombuffer(encoded[:-2].tobytes() + before_end + b"\xff\xd9", np.uint8).copy()
    status, window, planes = decode(odd, (50, 70, 100, 180))
    assert status == OK
    y, x, stride, rows = window.tolist()
    luma = planes[: rows * stride].reshape(rows, stride)
    expected = whole_planes(encoded)[50:100, 70:180, 0]
    assert np.array_equal(luma[50 - y : 100 - y, 70 - x : 180 - x], expected)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 30), st.sampled_from([{}, {"restart_marker_blocks": 4}])
)
def test_flipped_bytes_never_write_out_of_bounds(seed, count, restarts) -> None:
    """Whatever the status: guards behind the buffers stay as they were."""
    encoded = jpeg(1, 64, 128, **restarts)
    rng = np.random.default_rng(seed)
    encoded[rng.integers(2, encoded.size, count)] = rng.integers(0, 256, count)
    status, layout = parse(encoded)
    if status != OK or (layout[jpegfile.HEIGHT], layout[jpegfile.WIDTH]) != (64, 128):
        return  # `open_picture` refuses another size than the container's
    excerpt = np.full(jpegfile.excerpt_size(encoded.size) + 64, 0xAA, np.uint8)
    planes = np.full(jpegfile.planes_size(64, 128) + 64, 77, np.uint8)
    window = np.empty(jpegfile.WINDOW, np.int64)
    decoder = np.array([jpegfile.open_decoder()], np.uintp)
    jpegfile.decode_planes(
        decoder, encoded, layout, (5, 20, 60, 90), excerpt[:-64], planes[:-64], window
    )
    jpegfile.close_decoder(decoder[0])
    assert (excerpt[-64:] == 0xAA).all() and (planes[-64:] == 77).all()


def test_other_kinds_are_refused_by_name() -> None:
    assert parse(jpeg(progressive=True))[0] == UNSUPPORTED
    assert parse(jpeg(mode="CMYK"))[0] == UNSUPPORTED
    assert parse(jpeg(mode="RGB", keep_rgb=True, subsampling="4:4:4"))[0] == UNSUPPORTED
    assert parse(np.frombuffer(b"\x89PNG\r\n\x1a\n" * 9, np.uint8))[0] == BAD_JPEG


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 20),
    options=st.sampled_from([{}, {"restart_marker_blocks": 3}, {"optimize": True}]),
    subsampling=st.sampled_from(list(SUBSAMPLING)),
    grey=st.booleans(),
    data=st.data(),
)
def test_a_verdict_without_the_pixels_is_that_of_decoding_them(
    seed: int, options: dict[str, int], subsampling: str, grey: bool, data: st.DataObject
) -> None:
    """Damage of every kind: bytes changed, zeroed, cut out of the middle, cut off."""
    chosen = {} if grey else {"subsampling": subsampling}
    whole = jpeg(seed, mode="L" if grey else "RGB", **options, **chosen)
    start = data.draw(st.integers(2, whole.size - 1))
    stop = data.draw(st.integers(start, min(start + 400, whole.size)))
    how = data.draw(st.sampled_from(["sound", "changed", "zeroed", "cut out", "cut off"]))
    damaged = whole.copy()
    if how == "changed":
        damaged[start:stop] ^= data.draw(st.integers(1, 255))
    elif how == "zeroed":
        damaged[start:stop] = 0
    elif how != "sound":
        end = whole.size if how == "cut off" else stop
        damaged = np.concatenate([whole[:start], whole[end:]])
    pixels = np.empty((90, 130, 3), np.uint8)
    status = jpegfile.decode_jpeg(damaged, pixels)
    assert judge_jpeg(damaged, (90, 130)) == status
    assert status == OK or how != "sound"


ENCODERS = (
    {},
    {"optimize": True, "subsampling": "4:2:0"},
    {"quality": 100, "subsampling": "4:4:4"},
    {"quality": 5, "restart_marker_blocks": 2},
    {"quality": 30, "optimize": True, "restart_marker_rows": 1},
    {"mode": "L"},
)


@pytest.mark.parametrize("options", ENCODERS, ids=str)
def test_the_scan_of_a_sound_file_needs_no_second_look(options: dict[str, int]) -> None:
    """It is told sound by its codes, and the JPEG cut out of it is that of its first MCU."""
    data = jpeg(**options)
    first = first_of_sound(data, parse(data)[1], np.empty_like(data))
    assert first.size
    status, layout = parse(first)
    corner = np.empty((layout[jpegfile.HEIGHT], layout[jpegfile.WIDTH], 3), np.uint8)
    assert status == OK and jpegfile.decode_jpeg(first, corner) == OK
    luma = whole_planes(data)[: len(corner), : corner.shape[1], 0]
    assert np.array_equal(whole_planes(first)[..., 0], luma)


@pytest.mark.parametrize("options", ENCODERS, ids=str)
def test_a_verdict_by_codes_is_libjpeg_s_for_any_damage(options: dict[str, int]) -> None:
    """Of 4,000 files with up to three wrong bytes anywhere, or cut short, then ended again."""
    whole, chance = jpeg(1, 40, 56, **options), np.random.default_rng(0)
    pixels, verdicts = np.empty((40, 56, 3), np.uint8), []
    for _ in range(4000):
        damaged = whole.copy()
        places = chance.integers(2, whole.size, size=chance.integers(1, 4))
        damaged[places] = chance.integers(0, 256, size=places.size)
        if chance.random() < 0.2:
            damaged = np.concatenate([damaged[: places[0]], whole[-2:]])
        status = jpegfile.decode_jpeg(damaged, pixels)
        assert judge_jpeg(damaged, (40, 56)) == status, places
        verdicts.append(status)
    assert 0.02 < np.mean([verdict == OK for verdict in verdicts]) < 0.98


@pytest.mark.parametrize("options", ENCODERS, ids=str)
def test_a_scan_without_its_end_is_never_sound(options: dict[str, int]) -> None:
    """Cut anywhere: there are no bytes behind it to take for codes."""
    whole = jpeg(1, 24, 40, **options)
    for size in range(int(parse(whole)[1][jpegfile.SCAN_AT]), whole.size - 1):
        cut = whole[:size]
        assert first_of_sound(cut, parse(cut)[1], np.empty_like(cut)).size == 0
