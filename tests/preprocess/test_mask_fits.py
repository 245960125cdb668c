"""Masks are taken for those of the same image alone, and none that cannot be read is replaced."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from harl_fast.errors import DataError
from preprocess.images import decode
from preprocess.images.members import FileRange, Page
from preprocess.masks import fill, parse_spec
from preprocess.masks.maskfile import Fingerprint
from preprocess.masks.runner import LazyImage, MaskRequest, find_masks
from preprocess.masks.sources import open_masks
from preprocess.sources import Split
from preprocess.sources.cells import Cell
from preprocess.work import stamp_of
from tests.preprocess.support import image_folder, photo, save
from tests.preprocess.trees import content, converted, make

MTIME = 1_700_000_000 * 10**9


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.jpg")):
            archive.write(file, file.relative_to(folder).as_posix())
    os.utime(path, ns=(MTIME, MTIME))
    return path


def test_an_archive_of_the_same_time_and_names_has_other_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (image_folder(tmp_path / name, train=2, val=0) for name in "ab")
    for number, path in enumerate(sorted(second.rglob("*.jpg"))):
        save(photo(900 + number, height=90), path, quality=95)
    data, masks = tmp_path / "set.zip", tmp_path / "masks"
    make(zipped(first, data), masks, "--val", "0")
    before = content(masks)
    capsys.readouterr()
    make(data, masks, "--val", "0")
    assert "train: 4 masks, 4 there before" in capsys.readouterr().out
    zipped(second, data)
    with pytest.raises(DataError, match="was made from other images"):
        converted(data, tmp_path / "out", "--masks", str(masks), "--val", "0")
    make(data, masks, "--val", "0")
    assert "4 made again" in capsys.readouterr().out
    assert all(content(masks)[name] != before[name] for name in before)
    assert (
        converted(data, tmp_path / "out", "--masks", str(masks), "--val", "0").mask["fallbacks"]
        == 0
    )


def test_another_column_of_a_table_is_another_image(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    pq: Any = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"one", b"two"], "second": [b"ten", b"two"]}), path)
    images, second = (
        [Cell(path, (name,), 0, row, 3) for row in range(2)] for name in ("image", "second")
    )
    found = [Fingerprint.of(image) for image in images]
    assert found[0].fits(images[0]) and not found[0].fits(second[0])
    assert found[1].fits(second[1])  # of the same bytes
    assert stamp_of(images[0]) != stamp_of(second[0])


def test_a_member_is_known_by_its_place_or_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, moved = tmp_path / "x.tar", tmp_path / "y.tar"
    path.write_bytes(b"abcabcxyz")
    found = Fingerprint.of(FileRange(path, 0, 3))
    assert found.fits(FileRange(path, 3, 3)) and not found.fits(FileRange(path, 6, 3))
    older = Fingerprint(*found[:3])  # as masks of earlier versions have it
    assert older.fits(FileRange(path, 0, 3)) and not older.fits(FileRange(path, 6, 3))
    moved.write_bytes(path.read_bytes())
    assert found.fits(FileRange(moved, 0, 3))
    page = Page(FileRange(path, 0, 3), 1)
    assert Fingerprint.of(page).fits(page) and not found.fits(Page(FileRange(path, 6, 3), 1))
    monkeypatch.setattr(FileRange, "open", lambda *_: pytest.fail("was read"))
    os.utime(moved, ns=(MTIME, MTIME))
    assert found.fits(FileRange(path, 0, 3))


def test_a_page_of_a_file_of_another_size_is_another_image(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(b"abc")
    os.utime(path, ns=(MTIME, MTIME))
    found = Fingerprint.of(Page(path, 0))
    path.write_bytes(b"abcd")
    os.utime(path, ns=(MTIME, MTIME))
    assert not found.fits(Page(path, 0))


def refused(path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system refuse to open a file, also to root."""
    real = decode.open_regular

    def opened(file: Path, **options: Any) -> Any:
        if file == path:
            raise OSError(number, os.strerror(number), str(file))
        return real(file, **options)

    monkeypatch.setattr(decode, "open_regular", opened)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP])
def test_a_mask_that_the_system_does_not_give_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    data, masks = image_folder(tmp_path / "set", train=2, val=0), tmp_path / "masks"
    make(data, masks, "--mask-method", "center")
    own = masks / "train/class1/1.png"
    save(photo(5)[..., 0], own)
    before = content(masks)
    refused(own, number, monkeypatch)
    name, image, full = "train/class1/1.jpg", data / "train/class1/1.jpg", parse_spec("full")
    split = Split([name], [0], root=data, folder="train")
    for read in (
        lambda: fill.make_masks(
            [fill.MaskTask(name, image, own)], (full,), key="k", max_resolution=56
        ),
        lambda: find_masks([LazyImage(MaskRequest(name, image, own, "k"), side_px=56)], [full]),
        lambda: find_masks([LazyImage(MaskRequest(name, image, own), side_px=56)], [full]),
        lambda: open_masks(split, ["class1"], method=full, given=masks),
    ):
        with pytest.raises(OSError, match=os.strerror(number)) as error:
            read()
        assert error.value.filename == str(own)
    assert content(masks) == before


def test_links_that_lead_to_nothing_and_pointers_are_no_missing_masks(tmp_path: Path) -> None:
    image = save(photo(1), tmp_path / "x.jpg")
    (tmp_path / "dead.png").symlink_to(tmp_path / "unmounted.png")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (tmp_path / "pointer.png").write_text(pointer)
    for name, told in (("dead", "a link that leads to nothing"), ("pointer", "of Git LFS")):
        task = fill.MaskTask("x.jpg", image, tmp_path / f"{name}.png")
        with pytest.raises(OSError, match=told) as error:
            fill.make_masks([task], (parse_spec("full"),), key="k", max_resolution=56)
        assert error.value.filename == str(task.file)
    assert (tmp_path / "dead.png").is_symlink()
    assert (tmp_path / "pointer.png").read_text() == pointer
