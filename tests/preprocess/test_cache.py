"""Mask caches: the same masks as without, whole after any interruption, and never for others."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harl_fast.data.container.manifest import Manifest, read_manifest
from harl_fast.errors import ConfigError, DataError, HarlError
from harl_fast.lock import FOLDER_LOCK, lock_beside, locked
from preprocess import beton
from preprocess.masks import __main__ as program
from preprocess.masks import cache, parse_spec
from preprocess.masks.cachefile import (
    CachedMask,
    DamagedError,
    Fingerprint,
    read_masks,
    write_masks,
)
from preprocess.masks.runner import make_masks
from preprocess.masks.selftrained import train as training
from preprocess.work import stamp_of
from tests.preprocess.support import image_folder, photo, save

ROOT = Path(__file__).parents[2]
FILES = [f"train/{number:06d}" for number in range(4)] + ["val/000000"]


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FILE_IMAGES", 3)


def make(data: Path, out: Path, *options: str) -> None:
    assert program.main(["--data", str(data), "--out", str(out), "--workers", "1", *options]) == 0


def converted(data: Path, out: Path, *options: str) -> Manifest:
    fixed = ["--data", str(data), "--out", str(out), "--workers", "1"]
    assert beton.main([*fixed, *options]) == 0
    return read_manifest(out / "train.beton")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder).with_suffix("")): path.read_bytes()
        for path in folder.rglob("*.safetensors")
    }


def replaced(out: Path) -> dict[str, str]:
    report = json.loads((out / "train.report.json").read_text())
    return {item["path"]: item["reason"] for item in report["masks_replaced"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images for training: large and turned ones, and one that does not read."""
    root = image_folder(tmp_path_factory.mktemp("set"), train=5, val=1)
    turned = Image.Exif()
    turned[0x0112] = 6
    save(photo(51, height=90), root / "train/class1/turned.jpg", quality=95, exif=turned)
    half = (root / "train/class0/0.jpg").read_bytes()[:900]
    (root / "train/class1/half.jpg").write_bytes(half)
    return root


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "masks"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "FILE_IMAGES", 3)
        make(folder, out, "--max-resolution", "56")
    return out


@pytest.mark.parametrize("size", ["64", "24"])
def test_a_container_is_the_same_by_way_of_a_cache(
    folder: Path, made: Path, tmp_path: Path, size: str
) -> None:
    options = ["--max-resolution", "56", "--mask-size", size]
    direct = converted(folder, tmp_path / "direct", *options)
    cached = converted(folder, tmp_path / "cached", *options, "--masks", str(made))
    assert cached.beton_sha256 == direct.beton_sha256
    facts = dict(cached.mask)
    assert facts.pop("cache") == {"max_resolution": 56}
    assert facts.pop("fallback")["method"] == "heuristic"
    assert facts == direct.mask
    assert replaced(tmp_path / "cached") == {}


def test_shards_together_are_one_run(folder: Path, made: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for shard in ("1", "2"):
        place = tmp_path / shard
        make(folder, place, "--max-resolution", "56", "--shard", f"{shard}/2")
        assert len(content(place)) == {"1": 3, "2": 2}[shard]
        shutil.copytree(place, whole, dirs_exist_ok=True)
    assert sorted(content(whole)) == FILES
    assert content(whole) == content(made)
    assert (whole / "masks.json").read_bytes() == (made / "masks.json").read_bytes()


def test_a_second_run_makes_nothing_again(
    folder: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    make(folder, made, "--max-resolution", "56")
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    assert "train: 4 files of masks, 4 of them there before" in capsys.readouterr().out


@pytest.fixture
def copy(folder: Path, made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return images and cache that a test may change; copied without times, as machines do."""
    shutil.copytree(folder, tmp_path / "set", copy_function=shutil.copyfile)
    shutil.copytree(made, tmp_path / "masks")
    return tmp_path / "set", tmp_path / "masks"


def remade(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    return sorted(name for name in after if after[name] != before.get(name))


def test_a_changed_image_is_noticed_and_its_file_made_again(
    copy: tuple[Path, Path], tmp_path: Path
) -> None:
    data, masks = copy
    before = content(masks)
    save(photo(77), data / "train/class0/4.jpg", quality=95)
    converted(data, tmp_path / "out", "--max-resolution", "56", "--masks", str(masks))
    assert replaced(tmp_path / "out") == {
        "train/class0/4.jpg": "train/class0/4.jpg has changed since its mask was made; "
        "heuristic serves"
    }
    make(data, masks, "--max-resolution", "56")
    assert remade(before, content(masks)) == ["train/000001"]
    manifest = converted(data, tmp_path / "out", "--max-resolution", "56", "--masks", str(masks))
    assert manifest.mask["fallbacks"] == 0


def test_damaged_files_are_not_used_and_made_again(
    copy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, masks = copy
    path = masks / "train/000001.safetensors"
    whole = path.read_bytes()
    for damage in (whole[:-1], whole[:100], b"", whole[:-5000] + b"\x01" + whole[-4999:]):
        path.write_bytes(damage)
        before = content(masks)
        make(data, masks, "--max-resolution", "56")
        assert remade(before, content(masks)) == ["train/000001"]
    (masks / "train/000000.safetensors").unlink()
    path.write_bytes(whole[:-1])
    converted(data, tmp_path / "out", "--masks", str(masks))
    assert len(replaced(tmp_path / "out")) == 6
    shown = capsys.readouterr().out
    assert "lacks masks of 6 train images (train/class0/0.jpg, ...)" in shown
    assert "not used: " in shown and "masks by fall-back and reasons" in shown


def test_no_changed_byte_of_a_file_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    image = Fingerprint(5, 6, 7)
    mask = CachedMask("train/a/1\udcff.jpg", bytes(range(256)) * 8, False, "", image)
    rows = [mask, CachedMask("b", b"", False, "no image", image)]
    write_masks(path, rows, key="k")
    assert read_masks(path, key="k") == rows
    with pytest.raises(DamagedError, match="another method"):
        read_masks(path, key="other")
    whole = path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(whole), 150)
    for place in [*range(0, 700, 3), *places.tolist()]:
        changed = bytes([*whole[:place], whole[place] ^ 0x15, *whole[place + 1 :]])
        path.write_bytes(changed)
        try:
            assert read_masks(path, key="k") == rows  # a space of the header, at most
        except DamagedError:
            continue
        assert whole[place : place + 1].isspace(), place


def test_other_masks_are_not_mixed_in(folder: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds other masks: its spec is 'heuristic'.*center"):
        make(folder, made, "--max-resolution", "56", "--mask-method", "center")
    with pytest.raises(DataError, match=r"its max_resolution is 56, asked for is 512"):
        make(folder, made)
    save(np.ones((4, 4), np.uint8), tmp_path / "train/class0/0.png")  # a tree of mask files
    with pytest.raises(DataError, match="holds other things"):
        make(folder, tmp_path)


def test_a_cache_of_other_images_is_refused(made: Path, tmp_path: Path) -> None:
    other = image_folder(tmp_path / "other", classes=2, train=5, val=1)
    for index, path in enumerate(other.rglob("*.jpg")):
        save(photo(5000 + index), path, quality=50)
    with pytest.raises(DataError, match=r"was made from other images: train/class0/0\.jpg and all"):
        converted(other, tmp_path / "out", "--masks", str(made))
    (other / "train/class0").rename(other / "train/k0")
    (other / "train/class1").rename(other / "train/k1")
    (other / "val/class0").rename(other / "val/k0")
    (other / "val/class1").rename(other / "val/k1")
    with pytest.raises(DataError, match=r"holds no mask of the train images \(train/k0/0\.jpg"):
        converted(other, tmp_path / "out", "--masks", str(made))


def test_what_a_cache_cannot_serve_is_said(
    folder: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--masks", str(made), "--mask-size"]
    with pytest.raises(DataError, match="--mask-size 256: a cache holds masks of 128 px"):
        converted(folder, tmp_path / "out", *options, "256")
    converted(folder, tmp_path / "out", *options, "128")
    shown = capsys.readouterr().out
    assert "were made at --max-resolution 56, not 512" in shown
    assert f"masks: heuristic out of {made} (no labels)" in shown


def test_a_file_that_cannot_be_opened_is_tried_again(folder: Path, tmp_path: Path) -> None:
    tasks = [("gone", tmp_path / "gone.jpg"), ("there", folder / "train/class0/0.jpg")]
    methods = (parse_spec("full"),)
    gone, there = make_masks(tasks, methods, max_resolution=56)
    assert "No such file" in gone.problem and not gone.bits
    assert there.bits == b"\xff" * 2048 and there.image.fits(tasks[1][1])
    save(photo(3), tasks[0][1])
    assert not gone.image.fits(tasks[0][1])


def test_a_changed_list_of_images_is_noticed(copy: tuple[Path, Path]) -> None:
    data, masks = copy
    before = content(masks)
    save(photo(78), data / "train/class1/9.jpg", quality=95)  # the next to last name
    make(data, masks, "--max-resolution", "56")
    assert remade(before, content(masks)) == ["train/000003", "train/000004"]
    (data / "train/class1/9.jpg").unlink()
    make(data, masks, "--max-resolution", "56")
    assert sorted(content(masks)) == sorted(before)


@pytest.mark.parametrize(
    "options",
    [
        ["--shard", "3/2"],
        ["--shard", "x"],
        ["--shard", "\N{ARABIC-INDIC DIGIT ONE}/\N{ARABIC-INDIC DIGIT TWO}"],
        ["--workers", "0"],
        ["--mask-method", "x"],
    ],
)
def test_a_wrong_command_line_exits_with_2(options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        program.parse(["--data", "x", "--out", "y", *options])
    assert caught.value.code == 2


def test_what_makes_no_masks_from_images_has_no_cache(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs no cache.*\{shuffled: \{base: \{cache: "):
        make(folder, tmp_path / "out", "--mask-method", "shuffled")
    with pytest.raises(DataError, match="lies among the images"):
        make(folder, folder / "train" / "masks")


def started(data: Path, out: Path, *, files: int) -> subprocess.Popen[str]:
    """Start the program and return when it has written some files."""
    command = [sys.executable, "-m", "preprocess.masks", "--data", data, "--out", out]
    process = subprocess.Popen(
        [*command, "--mask-method", "center", "--workers", "1"],
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 600  # seconds where nothing else runs
    found = 0
    while found < files and process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):  # the folder of a trial, removed meanwhile
            found = len(content(out))
        time.sleep(0.005)
    if found < files:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"no masks after 600 s: {process.communicate()[1]}")
    return process


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enough images for seven files of the program's own size."""
    monkeypatch.undo()
    root = image_folder(tmp_path / "set", train=1, val=1)
    for index in range(1400):
        (root / "train/class0" / f"link{index}.jpg").symlink_to(root / "train/class0/0.jpg")
    return root


def test_a_killed_run_continues(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    process = started(many, out, files=1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=600)
    first = content(out)
    (out / "train/.000005.safetensors.77.tmp").touch()  # as if it had been writing
    assert 1 <= len(first) < 7
    make(many, out, "--mask-method", "center")
    assert len(content(out)) == 7
    assert all(content(out)[name] == first[name] for name in first)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_an_interrupted_run_says_that_it_continues(many: Path, tmp_path: Path) -> None:
    process = started(many, tmp_path / "masks", files=1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130 and "the same command continues" in errors
    assert "Traceback" not in errors
    assert 1 <= len(content(tmp_path / "masks")) < 7
    assert not list((tmp_path / "masks").rglob("*.tmp"))


def test_shards_may_run_at_once_unless_they_share_files(tmp_path: Path) -> None:
    with cache.locked_shard(tmp_path, (1, 2)), cache.locked_shard(tmp_path, (2, 2)):
        for shard in ((1, 2), (1, 1), (3, 4), (2, 3)):
            told = pytest.raises(HarlError, match=r"in use by|in common")
            with told, cache.locked_shard(tmp_path, shard):
                pass
    with cache.locked_shard(tmp_path, (1, 4)), cache.locked_shard(tmp_path, (2, 6)):
        pass  # numbers 0, 4, 8, ... and 1, 7, 13, ... never meet
    assert list(tmp_path.iterdir()) == []


def test_of_two_descriptions_at_once_one_stands(tmp_path: Path) -> None:
    ours = cache.describe(parse_spec("center"), max_resolution=64)
    cache.claim(tmp_path, ours)
    with pytest.raises(DataError, match="holds other masks"):
        cache.claim(tmp_path, cache.describe(parse_spec("full"), max_resolution=64))
    # The other came between this one's look and its writing.
    with pytest.MonkeyPatch.context() as patched, pytest.raises(DataError, match="other masks"):
        patched.setattr(cache, "is_cache", lambda folder: False)
        cache.claim(tmp_path, cache.describe(parse_spec("full"), max_resolution=64))
    assert cache.read_info(tmp_path) == json.loads(json.dumps(ours))


def test_programs_refuse_an_output_that_another_process_writes(tmp_path: Path) -> None:
    out, data = tmp_path / "out", image_folder(tmp_path / "data")
    with locked(out / FOLDER_LOCK, output=out), pytest.raises(HarlError, match="is in use by"):
        beton.main(["--data", str(data), "--out", str(out), "--workers", "1"])
    with cache.locked_shard(out, (1, 1)), pytest.raises(HarlError, match="is in use by"):
        make(data, out)
    network = tmp_path / "masks.safetensors"
    with locked(lock_beside(network), output=network), pytest.raises(HarlError, match="is in use"):
        training.main(["--data", str(data), "--out", str(network)])
    assert not out.exists() and not network.exists()


@pytest.mark.parametrize("year", [1900, 2400])
def test_a_file_of_any_date_is_known_again(year: int, tmp_path: Path) -> None:
    """Nanoseconds since 1970 have more than 63 bits after 2262, where file systems go on."""
    image = save(photo(0), tmp_path / "x.jpg")
    seconds = int(datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc).timestamp())
    os.utime(image, ns=(seconds * 10**9, seconds * 10**9))
    found = Fingerprint.of(image)
    assert found.fits(image) and np.array([found, found], np.int64).tolist() == [[*found]] * 2
    assert np.array(stamp_of(image), np.int64).tolist() == list(found[:2])
