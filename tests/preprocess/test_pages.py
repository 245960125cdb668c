"""Pages of TIFFs: the first is taken and the others are counted, or each is an image."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harl_fast.data.container.manifest import read_manifest
from harl_fast.data.reader import read_samples
from harl_fast.files import UnusualFileError
from preprocess import beton
from preprocess.images.arrays import Pixels
from preprocess.images.decode import decode_image
from preprocess.images.members import FileRange, FileRef, Page
from preprocess.images.reading import FIRST_PAGE, UnusableImageError
from preprocess.masks.__main__ import main as masks_main
from preprocess.sources import Source, Split
from preprocess.sources.pages import with_pages
from preprocess.work import stamp_of
from tests.preprocess.support import image_folder, photo, save

PAGES = [photo(number, height=40 + 8 * number) for number in range(4)]


def stack(path: Path, *, kinds: tuple[int, ...] = (0, 0, 0, 0), **options: object) -> Path:
    """Write `PAGES` as a TIFF; kinds: each page's tag 254."""
    images = []
    for pixels, kind in zip(PAGES, kinds, strict=True):
        image = Image.fromarray(pixels)
        image.encoderinfo = {"tiffinfo": {254: kind}}
        images.append(image)
    first, *rest = images
    first.save(path, save_all=True, append_images=rest, tiffinfo={254: kinds[0]}, **options)
    return path


def expanded(*files: Path, labels: list[int] | None = None) -> Split:
    names = [file.name for file in files]
    split = Split(names, labels or [0] * len(names), root=files[0].parent)
    return with_pages(Source("x", ["a", "b"], {"train": split})).splits["train"]


def rgb(image: FileRef | Pixels) -> Pixels:
    return decode_image(image, side_px=512).rgb


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
def test_each_page_is_an_image_of_its_own(tmp_path: Path, options: dict[str, object]) -> None:
    many = stack(tmp_path / "many.tif", **options)
    single = save(photo(7), tmp_path / "single.tif")
    other = save(photo(8), tmp_path / "other.png")
    split = expanded(other, many, single, labels=[0, 1, 0])
    pages = [f"many.tif#{number}" for number in (1, 2, 3, 4)]
    assert split.names == ["other.png", *pages, "single.tif"]
    assert split.labels == [0, 1, 1, 1, 1, 0]
    wanted = [photo(8), *PAGES, photo(7)]
    for row, pixels in enumerate(wanted):
        decoded = decode_image(split.file(row), side_px=512)
        np.testing.assert_array_equal(decoded.rgb, pixels)
        assert decoded.remarks == () and decoded.frame.file_size == pixels.shape[1::-1]
    first = decode_image(many, side_px=512)
    np.testing.assert_array_equal(first.rgb, PAGES[0])
    assert first.remarks == (FIRST_PAGE,)
    assert decode_image(single, side_px=512).remarks == ()


def test_thumbnails_and_masks_are_no_pages(tmp_path: Path) -> None:
    path = stack(tmp_path / "x.tif", kinds=(0, 1, 2, 4))
    assert expanded(path).names == ["x.tif#1", "x.tif#3"]
    thumbnails = stack(tmp_path / "y.tif", kinds=(0, 1, 1, 1))
    assert expanded(thumbnails).names == ["y.tif"]
    assert decode_image(thumbnails, side_px=512).remarks == ()


def links(data: bytes) -> list[int]:
    """Return where a little-endian TIFF's directories say where the next one is."""
    found, at = [4], struct.unpack_from("<I", data, 4)[0]
    while at:
        (count,) = struct.unpack_from("<H", data, at)
        found.append(at + 2 + 12 * count)
        (at,) = struct.unpack_from("<I", data, found[-1])
    return found


@pytest.mark.parametrize("target", ["first page", "behind the end", "pixels"])
def test_a_damaged_list_of_pages_ends_there(tmp_path: Path, target: str) -> None:
    data = bytearray(stack(tmp_path / "x.tif").read_bytes())
    places = links(data)
    goal = {"first page": struct.unpack_from("<I", data, 4)[0], "behind the end": len(data) + 5}
    struct.pack_into("<I", data, places[2], goal.get(target, 9))
    (tmp_path / "x.tif").write_bytes(data)
    split = expanded(tmp_path / "x.tif")
    assert split.names == ["x.tif#1", "x.tif#2"]
    for row in range(2):
        np.testing.assert_array_equal(rgb(split.file(row)), PAGES[row])


def test_a_page_that_is_gone_or_damaged_is_refused(tmp_path: Path) -> None:
    path = stack(tmp_path / "x.tif", compression="tiff_adobe_deflate")
    with pytest.raises(UnusableImageError, match="EOFError"):
        rgb(Page(path, 9))
    data = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(2)
        strip = image.tag_v2[273][0]
    data[strip + 40] ^= 255
    path.write_bytes(data)
    np.testing.assert_array_equal(rgb(Page(path, 1)), PAGES[1])
    with pytest.raises(UnusableImageError, match="damaged: strip 1 of the TIFF"):
        rgb(Page(path, 2))


def test_pages_inside_an_archive_and_limits_are_those_of_the_file(tmp_path: Path) -> None:
    path = stack(tmp_path / "x.tif")
    size = path.stat().st_size
    holder = tmp_path / "holder"
    holder.write_bytes(bytes(100) + path.read_bytes() + bytes(9))
    page = Page(FileRange(holder, 100, size), 2)
    np.testing.assert_array_equal(rgb(page), PAGES[2])
    assert (page.path, page.size) == (holder, size) and page.name.endswith("#3")
    with pytest.raises(UnusualFileError):
        page.open(size - 1)


def test_a_conversion_takes_first_or_all_pages_with_their_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, tree = image_folder(tmp_path / "set"), tmp_path / "tree"
    stack(root / "train/class1/many.tif")
    names = [f"many#{page}" for page in (1, 2, 4)]
    for number, name in enumerate(names):
        mask = np.zeros(PAGES[(0, 1, 3)[number]].shape[:2], bool)
        mask[:, : 8 * number + 8] = True
        save(mask, tree / f"train/class1/{name}.png")
    fixed = ["--data", str(root), "--mask-size", "64", "--workers", "1", "--store", "raw"]
    assert beton.main([*fixed, "--out", str(tmp_path / "first")]) == 0
    assert f"{FIRST_PAGE}: 1 files" in capsys.readouterr().out
    first = read_manifest(tmp_path / "first" / "train.beton")
    assert first.count == 9 and "pages" not in first.store

    out = tmp_path / "all"
    paged = [*fixed, "--pages", "all"]
    assert beton.main([*paged, "--out", str(out), "--masks", str(tree)]) == 0
    manifest = read_manifest(out / "train.beton")
    assert manifest.count == 12 and manifest.class_counts == [4, 8]
    assert manifest.store["pages"] == "all" and manifest.store["remarks"] == {}
    names_written = (out / "train.names.txt").read_text().splitlines()
    ids = [names_written.index(f"train/class1/many.tif#{page}") for page in (1, 2, 4)]
    for number, sample in enumerate(read_samples(out / "train.beton", ids)):
        np.testing.assert_array_equal(sample.image, PAGES[(0, 1, 3)[number]])
        assert sample.mask.mean() == (8 * number + 8) / 64

    masks = tmp_path / "masks"
    cached = ["--data", str(root), "--out", str(masks), "--pages", "all", "--workers", "1"]
    assert masks_main(cached) == 0
    capsys.readouterr()
    assert beton.main([*paged, "--out", str(tmp_path / "cached"), "--masks", str(masks)]) == 0
    assert "fall-backs" not in capsys.readouterr().out
    assert beton.main([*paged, "--out", str(tmp_path / "fresh")]) == 0
    both = [read_manifest(tmp_path / name / "train.beton") for name in ("cached", "fresh")]
    assert both[0].beton_sha256 == both[1].beton_sha256


def test_animations_are_no_stacks(tmp_path: Path) -> None:
    frames = [Image.fromarray(page[:40]) for page in PAGES]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    (tmp_path / "x.gif").write_bytes(stream.getvalue())
    assert expanded(tmp_path / "x.gif").names == ["x.gif"]
    assert decode_image(tmp_path / "x.gif", side_px=512).remarks == ()


def test_a_file_that_is_gone_is_left_out_beside_pages(tmp_path: Path) -> None:
    gone = tmp_path / "gone.jpg"
    assert stamp_of(Page(gone, 0)) == stamp_of(gone) == (-1, -1)
