"""Trees of made masks: the masks of a conversion, whole after any kill, never for other images."""

from __future__ import annotations

import contextlib
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
from PIL.PngImagePlugin import PngInfo

from harl_fast.errors import ConfigError, DataError, HarlError
from harl_fast.lock import FOLDER_LOCK, lock_beside, locked
from preprocess import beton
from preprocess.images.reading import UnusableImageError
from preprocess.masks import fill, parse_spec, tree
from preprocess.masks.maskfile import TEXT, read_made
from preprocess.masks.selftrained import train as training
from tests.preprocess.support import image_folder, photo, save
from tests.preprocess.trees import content, converted, make, replaced

ROOT = Path(__file__).parents[2]
STEMS = [f"train/class{kind}/{number}" for kind in range(2) for number in range(5)]
FILES = sorted([*STEMS, "train/class1/turned", "val/class0/0", "val/class1/0"])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "CHUNK", 3)


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
    out = tmp_path_factory.mktemp("tree") / "masks"
    make(folder, out, "--max-resolution", "56")
    return out


@pytest.mark.parametrize("size", ["64", "24"])
def test_a_container_is_the_same_by_way_of_a_tree(
    folder: Path, made: Path, tmp_path: Path, size: str
) -> None:
    options = ["--max-resolution", "56", "--mask-size", size]
    direct = converted(folder, tmp_path / "direct", *options)
    by_files = converted(folder, tmp_path / "files", *options, "--masks", str(made))
    assert by_files.beton_sha256 == direct.beton_sha256
    facts = dict(by_files.mask)
    assert facts.pop("files") == {"max_resolution": 56}
    assert facts.pop("fallback")["method"] == "heuristic"
    assert facts == direct.mask
    assert replaced(tmp_path / "files") == {}


def test_a_tree_holds_plain_files_that_other_readers_take(
    folder: Path, made: Path, tmp_path: Path
) -> None:
    assert sorted(content(made)) == FILES
    for name in FILES:
        with Image.open(made / f"{name}.png") as mask, Image.open(folder / f"{name}.jpg") as image:
            assert mask.mode == "1" and min(mask.size) == 128
            width, height = image.size
            assert mask.width * height == pytest.approx(mask.height * width, rel=0.01)
    shutil.copytree(made, tmp_path / "masks", ignore=shutil.ignore_patterns("masks.json"))
    options = ["--max-resolution", "56", "--masks"]
    ours = converted(folder, tmp_path / "ours", *options, str(made))
    plain = converted(folder, tmp_path / "plain", *options, str(tmp_path / "masks"))
    assert plain.mask["method"] == "png" and plain.mask["fallbacks"] == 0
    assert plain.mask["coverage_mean"] == pytest.approx(ours.mask["coverage_mean"], abs=0.01)


def test_no_changed_byte_of_a_file_goes_unnoticed(made: Path, tmp_path: Path) -> None:
    whole = (made / "train/class0/0.png").read_bytes()
    path = tmp_path / "x.png"
    for place in range(len(whole)):
        path.write_bytes(bytes([*whole[:place], whole[place] ^ 0x15, *whole[place + 1 :]]))
        with pytest.raises(UnusableImageError):
            read_made(path)


def test_shards_together_are_one_run(folder: Path, made: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for shard in ("1", "2"):
        place = tmp_path / shard
        make(folder, place, "--max-resolution", "56", "--shard", f"{shard}/2")
        assert len(content(place)) == {"1": 8, "2": 5}[shard]
        shutil.copytree(place, whole, dirs_exist_ok=True)
    assert content(whole) == content(made)
    assert (whole / "masks.json").read_bytes() == (made / "masks.json").read_bytes()


def test_a_second_run_makes_nothing_again(
    folder: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in made.rglob("*.*") if path.is_file()}

    before = files()
    make(folder, made, "--max-resolution", "56")
    assert files() == before
    shown = capsys.readouterr().out
    assert "train: 12 masks, 11 there before, 1 of unreadable images\n  first problem: " in shown


@pytest.fixture
def copy(folder: Path, made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return images and tree that a test may change; copied without times, as machines do."""
    shutil.copytree(folder, tmp_path / "set", copy_function=shutil.copyfile)
    shutil.copytree(made, tmp_path / "masks")
    return tmp_path / "set", tmp_path / "masks"


def remade(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    return sorted(name for name in after if after[name] != before.get(name))


def test_a_changed_image_is_noticed_and_its_mask_made_again(
    copy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, masks = copy
    before = content(masks)
    save(photo(77), data / "train/class0/4.jpg", quality=95)
    converted(data, tmp_path / "out", "--max-resolution", "56", "--masks", str(masks))
    why = "the image has changed since 4.png was made"
    assert replaced(tmp_path / "out") == {"train/class0/4.jpg": f"{why}; heuristic serves"}
    capsys.readouterr()
    make(data, masks, "--max-resolution", "56")
    assert f"first problem: train/class0/4.jpg: made again: {why}" in capsys.readouterr().out
    assert remade(before, content(masks)) == ["train/class0/4"]
    manifest = converted(data, tmp_path / "out", "--max-resolution", "56", "--masks", str(masks))
    assert manifest.mask["fallbacks"] == 0


def test_damaged_files_are_not_used_and_made_again(copy: tuple[Path, Path], tmp_path: Path) -> None:
    data, masks = copy
    path = masks / "train/class0/2.png"
    whole, before, sound = path.read_bytes(), content(masks), read_made(path)
    for damage in (whole[:-1], whole[:100], b"", whole[:-30] + b"\x01" + whole[-29:]):
        path.write_bytes(damage)
        make(data, masks, "--max-resolution", "56")
        again = read_made(path)
        assert again is not None and sound is not None
        np.testing.assert_array_equal(again.mask, sound.mask)
    assert remade(before, content(masks)) == ["train/class0/2"]  # its record has the copy's time
    path.write_bytes(whole[:-1])
    (masks / "train/class1/turned.png").unlink()
    converted(data, tmp_path / "out", "--max-resolution", "56", "--masks", str(masks))
    reasons = replaced(tmp_path / "out")
    assert sorted(reasons) == ["train/class0/2.jpg", "train/class1/turned.jpg"]
    assert "damaged" in reasons["train/class0/2.jpg"]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_an_edited_file_is_the_users_own(
    copy: tuple[Path, Path], tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even if the editor keeps the text of a file."""
    data, masks = copy
    path, kept = masks / "train/class1/3.png", PngInfo()
    with Image.open(path) as image:
        kept.add_text(TEXT, image.info[TEXT])
        whole = np.asarray(image)
    Image.fromarray(whole).save(path, pnginfo=kept, optimize=True)
    assert read_made(path) is not None
    Image.fromarray(~whole).convert(mode).save(path, pnginfo=kept)
    before = content(masks)
    make(data, masks, "--max-resolution", "56")
    assert content(masks) == before
    assert "10 there before, 1 of your own" in capsys.readouterr().out
    save(photo(78, height=72), data / "train/class1/3.jpg")  # the user's mask of it stays
    make(data, masks, "--max-resolution", "56")
    assert content(masks) == before
    manifest = converted(data, tmp_path / "out", "--max-resolution", "56", "--masks", str(masks))
    assert "of your own 1 (9.1%)" in capsys.readouterr().out
    assert manifest.mask["edited"] == 1 and manifest.mask["fallbacks"] == 0
    assert manifest.mask["supervision"] == "unknown" and manifest.mask["method"] == "heuristic"


def test_other_masks_are_not_mixed_in(folder: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds other masks: its spec is 'heuristic'.*center"):
        make(folder, made, "--max-resolution", "56", "--mask-method", "center")
    with pytest.raises(DataError, match=r"its max_resolution is 56, asked for is 512"):
        make(folder, made)
    other = tmp_path / "other"
    make(folder, other, "--max-resolution", "56", "--mask-method", "center")
    shutil.copyfile(made / "train/class0/0.png", other / "train/class0/0.png")
    converted(folder, tmp_path / "out", "--masks", str(other))
    (reason,) = replaced(tmp_path / "out").values()
    assert reason == "0.png comes from another method or other settings; heuristic serves"
    save(np.ones((4, 4), np.uint8), tmp_path / "own/train/class0/0.png")  # a tree from elsewhere
    with pytest.raises(DataError, match=r"own/train/class0/0\.png is no mask of this program"):
        make(folder, tmp_path / "own")


def test_masks_of_the_older_format_are_refused(folder: Path, tmp_path: Path) -> None:
    info = tree.describe(parse_spec("heuristic"), max_resolution=512)
    info = {**info, "format": 1, "side": 128}
    del info["reading"]
    (tmp_path / tree.INFO).write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"has format 1, .* reads 2\. Delete .*make the masks ag"):
        make(folder, tmp_path)
    with pytest.raises(DataError, match=r"has format 1, "):
        converted(folder, tmp_path / "out", "--masks", str(tmp_path))


def test_a_tree_of_other_images_is_refused(made: Path, tmp_path: Path) -> None:
    other = image_folder(tmp_path / "other", classes=2, train=5, val=1)
    for index, path in enumerate(other.rglob("*.jpg")):
        save(photo(5000 + index), path, quality=50)
    with pytest.raises(DataError, match=r"was made from other images: train/class0/0\.jpg and all"):
        converted(other, tmp_path / "out", "--masks", str(made))
    for split in ("train", "val"):
        for kind in ("0", "1"):
            (other / split / f"class{kind}").rename(other / split / f"k{kind}")
    with pytest.raises(DataError, match=r"none of 10 images \(train/k0/0\.jpg, .* has a mask file"):
        converted(other, tmp_path / "out", "--masks", str(made))


def test_what_a_tree_cannot_serve_is_said(
    folder: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--masks", str(made), "--mask-size"]
    with pytest.raises(DataError, match=r"--mask-size 256: .* makes masks of 128 px"):
        converted(folder, tmp_path / "out", *options, "256")
    converted(folder, tmp_path / "out", *options, "128")
    shown = capsys.readouterr().out
    assert "were made at --max-resolution 56, not 512" in shown
    assert f"masks: heuristic out of {made} (no labels)" in shown


def test_a_file_that_cannot_be_opened_is_tried_again(folder: Path, tmp_path: Path) -> None:
    tasks = [
        fill.MaskTask("gone", tmp_path / "gone.jpg", tmp_path / "gone.png"),
        fill.MaskTask("there", folder / "train/class0/0.jpg", tmp_path / "there.png"),
    ]
    methods = (parse_spec("full"),)
    first = fill.make_masks(tasks, methods, key="k", max_resolution=56)
    assert +first.counts == {fill.UNREADABLE: 1, fill.MADE: 1}
    assert "No such file" in first.problems[0] and not tasks[0].file.exists()
    save(photo(3), tmp_path / "gone.jpg")
    second = fill.make_masks(tasks, methods, key="k", max_resolution=56)
    assert +second.counts == {fill.MADE: 1, fill.KEPT: 1} and tasks[0].file.exists()


def test_images_of_which_none_could_be_read_are_refused(tmp_path: Path) -> None:
    for number in range(2):
        save(photo(number), tmp_path / f"data/{number}.jpg")
        path = tmp_path / f"data/{number}.jpg"
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"^none of the 2 images of train could be read; the first"):
        make(tmp_path / "data", tmp_path / "out")
    save(photo(2), tmp_path / "data/2.jpg")
    make(tmp_path / "data", tmp_path / "out")
    assert sorted(content(tmp_path / "out")) == ["2"]


def test_only_a_new_image_gets_a_mask_and_a_lost_description_comes_back(
    copy: tuple[Path, Path],
) -> None:
    data, masks = copy
    before = content(masks)
    (masks / tree.INFO).unlink()
    save(photo(78), data / "train/class1/9.jpg", quality=95)  # the next to last name
    make(data, masks, "--max-resolution", "56")
    assert remade(before, content(masks)) == ["train/class1/9"] and (masks / tree.INFO).exists()


def test_what_makes_no_masks_from_images_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not made here.*\{shuffled: \{base: \{png: "):
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
        with contextlib.suppress(FileNotFoundError):  # what was renamed or removed meanwhile
            found = len(content(out))
        time.sleep(0.005)
    if found < files:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"no masks after 600 s: {process.communicate()[1]}")
    return process


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enough images for about a second, in chunks of the program's own size."""
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
    assert 1 <= len(first) < 1404
    make(many, out, "--mask-method", "center")
    assert len(content(out)) == 1404
    assert all(content(out)[name] == first[name] for name in first)
    assert not list(out.rglob(".*.tmp"))


@pytest.mark.slow
def test_an_interrupted_run_says_that_it_continues(many: Path, tmp_path: Path) -> None:
    process = started(many, tmp_path / "masks", files=1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130 and "the same command continues" in errors
    assert "Traceback" not in errors
    assert 1 <= len(content(tmp_path / "masks")) < 1404


def test_a_tree_that_is_being_filled_is_waited_for(
    folder: Path, made: Path, tmp_path: Path
) -> None:
    with tree.locked_shard(made, (2, 2)), pytest.raises(HarlError, match=f"{made} is in use by"):
        converted(folder, tmp_path / "out", "--masks", str(made))
    assert not (tmp_path / "out/train.beton").exists()


def test_programs_refuse_an_output_that_another_process_writes(tmp_path: Path) -> None:
    out, data = tmp_path / "out", image_folder(tmp_path / "data")
    with locked(out / FOLDER_LOCK, output=out), pytest.raises(HarlError, match="is in use by"):
        beton.main(["--data", str(data), "--out", str(out), "--workers", "1"])
    with tree.locked_shard(out, (1, 1)), pytest.raises(HarlError, match="is in use by"):
        make(data, out)
    network = tmp_path / "masks.safetensors"
    with locked(lock_beside(network), output=network), pytest.raises(HarlError, match="is in use"):
        training.main(["--data", str(data), "--out", str(network)])
    assert not out.exists() and not network.exists()
