"""Archives of trees: what is passed over, what is refused, and that nothing leads out of them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from harl_fast.errors import DataError
from preprocess.sources import SOURCES, Choices, Source, read_source
from preprocess.sources.archives import fits_archive, scratch_beside
from preprocess.sources.entries import BrokenArchiveError, tar_entries
from tests.preprocess.packed import add, to_zip, write_tar
from tests.preprocess.support import photo, save

TREE = ("train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "val/a/3.jpg")


def tar_of(path: Path, *names: str) -> Path:
    return write_tar(path, {name: name.encode() for name in names})


def read(path: Path, **choices: object) -> Source:
    return read_source(path, Choices(source="archive", **choices))


def bytes_of(source: Source, split: str = "train") -> dict[str, bytes]:
    part = source.splits[split]
    return {name: part.file(row).open(99).read() for row, name in enumerate(part.names)}


def test_layouts_are_those_of_folders(tmp_path: Path) -> None:
    source = read(tar_of(tmp_path / "x.tar", *TREE))
    assert source.classes == ["a", "b"] and list(source.splits) == ["train", "val"]
    assert bytes_of(source, "val") == {"val/a/3.jpg": b"val/a/3.jpg"}
    kinds = read(tar_of(tmp_path / "y.tar", "set/cat/1.jpg", "set/dog/2.png", "set/dog/3.png"))
    assert kinds.classes == ["cat", "dog"]  # the folder around all is none
    plain = read(tar_of(tmp_path / "z.tar", "1.jpg", "Rome/2.jpg", "Rome/old/3.webp"))
    assert plain.classes == [] and plain.splits["train"].labels == [-1] * 3


def test_what_systems_and_links_leave_is_passed_over(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", *TREE, "__MACOSX/train/a/._1.jpg", "train/a/.DS_Store")
    with tarfile.open(path, "a") as archive:
        add(archive, "train/a/notes.txt", b"no image")
        for name, kind in (("train/a/link.jpg", tarfile.SYMTYPE), ("train/c", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    source = read(path)
    reasons = {item.name: item.reason for item in source.splits["train"].rejected}
    assert set(reasons) == {"train/a/notes.txt", "train/a/link.jpg"}
    assert "link to /etc/passwd, which is not followed" in reasons["train/a/link.jpg"]
    assert set(bytes_of(source)) == set(TREE[:3])
    said = "\n".join(source.notes)
    assert "passed over 1 hidden or system files" in said


def test_a_hard_link_is_the_file_that_it_links_to(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", *TREE)
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("train/b/2.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "train/a/1.jpg"
        archive.addfile(info)
    assert bytes_of(read(path))["train/b/2.jpg"] == b"train/a/1.jpg"


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_lead_out_are_no_images(kind: str, tmp_path: Path) -> None:
    """They would name mask files elsewhere."""
    out = ["../train/a/9.jpg", "/train/a/9.jpg", "train/../../a/9.jpg"]
    path = tmp_path / f"x.{kind}"
    if kind == "tar":
        tar_of(path, *TREE, *out)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name in (*TREE, *out):
                archive.writestr(name, name)
    source = read(path)
    names = [name for split in source.splits.values() for name in split.names]
    assert sorted(names) == sorted(TREE)
    train = source.splits["train"]
    assert {"../train/a/9.jpg", "/train/a/9.jpg", "../a/9.jpg"} == {r.name for r in train.rejected}
    assert "not read, being beside train/ and val/: 3 files in no folder" in "\n".join(source.notes)


def test_an_archive_behind_another_in_one_file_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            archive.writestr(f"train/a/{number}.jpg", b"1")
            archive.writestr(f"train/b/{number}.jpg", b"1")
    joined = (tmp_path / "0.zip").read_bytes() + (tmp_path / "1.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(joined)
    with pytest.raises(DataError, match="another archive stands before it"):
        read(tmp_path / "x.zip")
    # What programs that unpack themselves begin with is none.
    (tmp_path / "y.zip").write_bytes(b"#!/bin/sh\n" + (tmp_path / "1.zip").read_bytes())
    assert len(bytes_of(read(tmp_path / "y.zip"))) == 2


@pytest.mark.parametrize("system", [0, 3])  # the second is UNIX, as some write there
def test_folders_that_windows_parts_by_backslashes_are_folders(tmp_path: Path, system: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg"):
            info = zipfile.ZipInfo(name)
            info.filename, info.create_system = name.replace("/", "\\"), system
            archive.writestr(info, b"1")
    splits = read(tmp_path / "x.zip").splits
    assert splits["train"].names == ["train/a/1.jpg", "train/b/1.jpg"]
    assert splits["val"].names == ["val/a/2.jpg"]


def test_a_tar_without_a_mark_of_its_end_is_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", *TREE)
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset])
    with pytest.raises(DataError, match="no mark of its end: it may have been cut short"):
        read(path)


def test_the_last_of_several_files_of_a_name_counts(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", *TREE)
    with tarfile.open(path, "a") as archive:
        add(archive, "./train/a/1.jpg", b"newer")
    source = read(path)
    assert bytes_of(source)["train/a/1.jpg"] == b"newer"
    assert "1 names stand in it more than once (" in "\n".join(source.notes)


def test_zips_of_other_kinds_of_members_say_why(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in TREE:
            archive.writestr(name, name)
        archive.writestr("train/a/packed.jpg", b"x" * 99, zipfile.ZIP_BZIP2)
        link = zipfile.ZipInfo("train/a/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("train/a/secret.jpg", b"x")
    data = path.read_bytes()
    at = data.index(b"PK\1\2", data.index(b"train/a/secret.jpg") + 30)
    while data[at + 46 :][:18] != b"train/a/secret.jpg":
        at = data.index(b"PK\1\2", at + 1)
    path.write_bytes(data[: at + 8] + b"\1" + data[at + 9 :])  # the flag of encryption
    reasons = {item.name: item.reason for item in read(path).splits["train"].rejected}
    assert reasons == {
        "train/a/packed.jpg": "compressed by method 12, not by deflate",
        "train/a/link.jpg": "a link or no regular file",
        "train/a/secret.jpg": "encrypted",
    }


def broken(tmp_path: Path) -> dict[str, tuple[str, bytes]]:
    tar = tar_of(tmp_path / "whole.tar", *TREE).read_bytes()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        add(archive, "train/a/1.jpg", bytes(range(256)) * 40)
    save(photo(1), tmp_path / "tree/a/1.png")
    zipped = to_zip(tmp_path / "tree", tmp_path / "whole.zip").read_bytes()
    return {
        "cut in a member": ("x.tar", tar[:1200] + b""),
        "cut in a header": ("x.tar", tar[:1100]),
        "a damaged header": ("x.tar", tar[:1024] + bytes(8) + b"x" * 200 + tar[1232:]),
        "two after each other": ("x.tar", tar + tar),
        "no tar": ("x.tar", b"PK" * 999),
        "cut stream": ("x.tar.gz", packed.getvalue()[:-40]),
        "no stream": ("x.tgz", b"x" * 999),
        "no bzip2 stream": ("x.tar.bz2", packed.getvalue()),
        "no xz stream": ("x.tar.xz", packed.getvalue()),
        "cut zip": ("x.zip", zipped[:-30]),
        "no zip": ("x.zip", b"x" * 999),
        "empty": ("x.zip", b""),
    }


@pytest.mark.parametrize(
    ("name", "pack"),
    [("x.tgz", gzip), ("x.TAR.GZ", gzip), ("x.tbz2", bz2), ("x.tbz", bz2), ("x.txz", lzma)],
)
def test_compressed_archives_go_by_their_short_names_too(
    name: str, pack: Any, tmp_path: Path
) -> None:
    plain = tar_of(tmp_path / "whole.tar", *TREE)
    (tmp_path / name).write_bytes(pack.compress(plain.read_bytes()))
    assert fits_archive(tmp_path / name)
    found = read(tmp_path / name, scratch=tmp_path / "scratch")
    assert found.splits["train"].names == read(plain).splits["train"].names


@pytest.mark.parametrize("case", [
    "cut in a member", "cut in a header", "a damaged header", "two after each other", "no tar",
    "cut stream", "no stream", "no bzip2 stream", "no xz stream", "cut zip", "no zip", "empty",
])  # fmt: skip
def test_a_broken_archive_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, data = broken(tmp_path)[case]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=rf"{name} is no whole archive \(.*\): get it again, or give it the suffix"
    ) as error:
        read(path, scratch=tmp_path / "scratch")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_read_as_tarfile_reads_them(kind: int, tmp_path: Path) -> None:
    long = "/".join(["folder" * 4] * 6)
    names = ["a.jpg", f"{long}/b.jpg", "é/ü.jpg", "x" * 99, "x" * 100]
    names += [] if kind == tarfile.USTAR_FORMAT else ["y" * 300]
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as archive:
        for size, name in enumerate(names):
            add(archive, name, bytes(600 * size))
            archive.addfile(tarfile.TarInfo(f"{size}"))
    with tarfile.open(tmp_path / "x.tar") as archive:
        expected = [(one.name, (one.offset_data, one.size)) for one in archive.getmembers()]
    assert [(name, place) for name, place, _ in tar_entries(tmp_path / "x.tar")] == expected
    assert [name for name, _ in expected[::2]] == names


def test_a_tar_of_negative_sizes_ends(tmp_path: Path) -> None:
    """CVE-2025-8194: older versions of `tarfile` go round in circles."""
    info = tarfile.TarInfo("x.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 8 + (-512).to_bytes(4, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "x.tar").write_bytes(header + bytes(10240))
    with pytest.raises(BrokenArchiveError):
        list(tar_entries(tmp_path / "x.tar"))


def test_scratch_is_made_when_needed_and_removed(tmp_path: Path) -> None:
    (tmp_path / ".unpacked").mkdir()
    (tmp_path / ".unpacked/left.plain").touch()  # of a run that was killed
    with scratch_beside(tmp_path) as scratch:
        assert not scratch.exists()
        scratch.mkdir()
        (scratch / "x").touch()
    assert list(tmp_path.iterdir()) == []


def test_what_unpacking_takes_is_said_or_refused_before(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(tar_of(tmp_path / "x.tar", *TREE).read_bytes()))
    read(path, scratch=tmp_path / "scratch")
    assert "takes at least the 0.00 GB of the archive" in capsys.readouterr().out
    left = shutil.disk_usage(tmp_path)._replace(free=path.stat().st_size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: left)
    with pytest.raises(DataError, match=r"0\.00 GB are free there: free some"):
        read(path, scratch=tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_a_tar_is_an_archive_or_shards_by_its_first_members(tmp_path: Path) -> None:
    tree = tar_of(tmp_path / "tree.tar", *TREE)
    shard = tar_of(tmp_path / "shard.tar", "a/1.jpg", "a/1.cls", "b/1.jpg", "b/1.cls")
    flat = tar_of(tmp_path / "flat.tar", "1.jpg", "2.jpg")
    for path, kind in ((tree, "archive"), (shard, "tar"), (flat, "tar")):
        assert [name for name, reader in SOURCES.items() if reader.fits(path)] == [kind]


def test_an_archive_of_archives_is_told_with_what_lies_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("inner.zip", b"PK")
    with pytest.raises(DataError, match=r"holds no image \(inner.zip: not an image .*inside anot"):
        read(tmp_path / "x.zip")
