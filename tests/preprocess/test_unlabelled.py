"""Images without labels all the way: container, checks, loader, pictures, masks, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from harl_fast.config import load_config
from harl_fast.data.container.index import check_container
from harl_fast.data.container.manifest import read_manifest
from harl_fast.data.loader import EvalLoader
from harl_fast.data.reader import read_samples
from harl_fast.engine.labelled import open_data
from harl_fast.engine.monitor.probe import Probe
from harl_fast.errors import DataError
from harl_fast.eval.protocol import Evaluator
from harl_fast.finetuning import FinetuneConfig
from preprocess import beton, preview
from preprocess.masks.__main__ import main as masks_main
from preprocess.sources.base import UNLABELLED
from preprocess.verify import main as verify_main
from tests.preprocess.support import Pixels, image_folder, photo, same_colours, save

COUNT = 36
PLACES = (".", "2019", "2019/Rome", "2020/sea/best", "scans")


def holiday(root: Path) -> dict[str, Pixels]:
    """Write nested photos of many kinds and what lies among them; return them by name."""
    kinds = (("jpg", "jpg"), ("jpg", "JPE"), ("webp", "jpg"), ("png", "png"), ("jpg", ""))
    written = {}
    for number in range(COUNT):
        pixels = photo(number, height=48 + number % 3 * 16)
        kind, suffix = kinds[number % 5]
        real = save(pixels, root / PLACES[number % 4] / f"{number:02d}.{kind}", quality=95)
        file = real.rename(real.with_name(f"{number:02d}{'.' * bool(suffix)}{suffix}"))
        written[file.relative_to(root).as_posix()] = pixels
    save(photo(0), root / "2019" / "@eaDir" / "00.jpg")
    (root / ".DS_Store").touch()
    (root / "2019" / "notes.txt").write_text("no image")
    (root / "lost").mkdir()
    (root / "lost" / "1.jpg").write_bytes(b"no JPEG")
    (root / "lost" / "2.jpg").touch()
    return written


def convert(data: Path, out: Path, *options: str) -> int:
    fixed = ["--mask-size", "16", "--max-resolution", "96", "--workers", "1"]
    return beton.main(["--data", str(data), "--out", str(out), *fixed, *options])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Pixels]]:
    root = tmp_path_factory.mktemp("set")
    return root, holiday(root / "holiday")


@pytest.fixture(scope="module")
def out(made: tuple[Path, dict[str, Pixels]]) -> Path:
    assert convert(made[0] / "holiday", made[0] / "out") == 0
    return made[0] / "out"


def test_all_photos_are_samples_without_a_class(
    out: Path, made: tuple[Path, dict[str, Pixels]]
) -> None:
    assert not (out / "val.beton").exists()
    train = out / "train.beton"
    manifest = read_manifest(train)
    check_container(train, manifest)
    assert (manifest.count, manifest.classes, manifest.class_counts) == (COUNT, [], [])
    samples = list(read_samples(train, range(COUNT)))
    assert {sample.label for sample in samples} == {UNLABELLED}
    assert [sample.name for sample in samples] == sorted(made[1])
    for sample in samples:
        assert same_colours(sample.image, made[1][sample.name], mean=6.0), sample.name
    assert verify_main([str(train)]) == 0


def test_every_other_file_is_reported_and_a_lost_folder_said(
    made: tuple[Path, dict[str, Pixels]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(made[0] / "holiday", tmp_path)
    said = capsys.readouterr().out
    assert f"read as images in any folders: {COUNT + 2} train images, no labels" in said
    assert "holiday: passed over 2 hidden or system files and folders" in said
    assert f"train: {COUNT} images, no labels, 3 files skipped" in said
    assert "folder lost is lost: none of its 2 files could be read (first: lost/1.jpg: " in said
    skipped = json.loads((tmp_path / "train.report.json").read_text())["skipped"]
    assert [item["path"] for item in skipped] == ["2019/notes.txt", "lost/1.jpg", "lost/2.jpg"]


def test_a_label_in_a_container_without_classes_is_noticed(out: Path) -> None:
    manifest = read_manifest(out / "train.beton")
    labelled = manifest.__class__(
        **{**vars(manifest), "classes": ["a", "b"], "class_counts": [COUNT, 0]}
    )
    with pytest.raises(DataError, match="an impossible label in sample 0"):
        check_container(out / "train.beton", labelled)


def test_loaders_and_the_contact_sheet_take_them(out: Path, tmp_path: Path) -> None:
    loader = EvalLoader(out / "train.beton", size_px=32, batch=8, workers=1)
    labels = torch.cat([batch.labels.clone() for batch in loader])
    loader.close()
    assert labels.tolist() == [UNLABELLED] * COUNT
    sheet = tmp_path / "sheet.png"
    assert preview.main([str(out / "train.beton"), "--out", str(sheet), "--count", "2"]) == 0
    assert sheet.stat().st_size > 1000


def test_judging_features_asks_for_labels_or_for_a_val(out: Path, tmp_path: Path) -> None:
    settings = {"size_px": 32, "mean": [0.5] * 3, "std": [0.2] * 3, "device": torch.device("cpu")}
    with pytest.raises(DataError, match=r"train.beton has no labels.*make lineval DATA=") as caught:
        Evaluator(out, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="has no labels"):
        train = out / "train.beton"
        config, cpu = load_config("small"), torch.device("cpu")
        Probe(train, read_manifest(train), config, device=cpu, threads=1)
    with pytest.raises(DataError, match=r"train.beton has no labels.*folders or a list with"):
        open_data(out, FinetuneConfig(), subset="", needs_val=False)
    convert(image_folder(tmp_path / "set", val=0) / "train", tmp_path / "out", "--val", "0")
    with pytest.raises(DataError, match=r"has no val.beton.*make beton DATA=<images> VAL=5%"):
        Evaluator(tmp_path / "out", **settings)  # type: ignore[arg-type]


def test_a_part_is_held_out_when_asked_for(
    made: tuple[Path, dict[str, Pixels]], tmp_path: Path
) -> None:
    convert(made[0] / "holiday", tmp_path, "--val", "25%")
    counts = [read_manifest(tmp_path / f"{name}.beton").count for name in ("train", "val")]
    assert sum(counts) == COUNT and 8 <= counts[1] <= 10


def test_an_older_val_does_not_stay_beside_a_new_train(
    made: tuple[Path, dict[str, Pixels]], tmp_path: Path
) -> None:
    convert(image_folder(tmp_path / "set"), tmp_path / "out")
    before = read_manifest(tmp_path / "out/train.beton")
    with pytest.raises(DataError, match=r"val.beton is of an earlier conversion.*delete it"):
        convert(made[0] / "holiday", tmp_path / "out")
    assert read_manifest(tmp_path / "out/train.beton") == before


def test_masks_come_from_a_mirrored_tree_and_from_a_made_one(
    made: tuple[Path, dict[str, Pixels]], tmp_path: Path
) -> None:
    data = made[0] / "holiday"
    for name, pixels in made[1].items():
        mask = np.zeros(pixels.shape[:2], np.uint8)
        mask[:, : mask.shape[1] // 2] = 255
        save(mask, (tmp_path / "tree" / name).with_suffix(".png"))
    convert(data, tmp_path / "out", "--masks", str(tmp_path / "tree"))
    for sample in read_samples(tmp_path / "out/train.beton", range(COUNT)):
        assert sample.mask[:, :8].all() and not sample.mask[:, 8:].any()
    made = str(tmp_path / "made")
    assert masks_main(["--data", str(data), "--out", made, "--workers", "1"]) == 0
    convert(data, tmp_path / "second", "--masks", made)
    facts = read_manifest(tmp_path / "second/train.beton").mask
    assert facts["method"] == "heuristic" and "files" in facts and facts["fallbacks"] == 0


def test_made_masks_serve_whatever_is_held_out(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "set", train=10, val=0) / "train"
    made = tmp_path / "made"
    masks_main(["--data", str(data), "--out", str(made), "--workers", "1"])
    convert(data, tmp_path / "out", "--masks", str(made), "--val", "40%")
    for name, count in (("train", 12), ("val", 8)):
        manifest = read_manifest(tmp_path / f"out/{name}.beton")
        assert manifest.count == count and manifest.mask["fallbacks"] == 0


def test_masks_that_a_list_names_are_stored(tmp_path: Path) -> None:
    rows = ["path,label,mask"]
    for number in range(4):
        save(photo(number), tmp_path / f"{number}.jpg", quality=95)
        mask = np.zeros((48, 64), np.uint8)
        mask[: 12 * number] = 1
        save(mask, tmp_path / f"m{number}.png")
        rows.append(f"{number}.jpg,{'ab'[number % 2]},{f'm{number}.png' if number else ''}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    convert(tmp_path / "list.csv", tmp_path / "out", "--val", "0", "--mask-method", "full")
    samples = list(read_samples(tmp_path / "out/train.beton", range(4)))
    assert [round(sample.mask.mean() * 16) for sample in samples] == [16, 4, 8, 12]
    facts = read_manifest(tmp_path / "out/train.beton").mask
    assert facts["method"] == "png" and facts["fallbacks"] == 1
    (tmp_path / "m1.png").unlink()
    save(np.ones((9, 200), np.uint8), tmp_path / "m1.png")  # not the image's proportions
    convert(tmp_path / "list.csv", tmp_path / "other", "--val", "0", "--mask-method", "full")
    assert read_manifest(tmp_path / "other/train.beton").mask["fallbacks"] == 2


def test_the_masks_may_not_lie_among_the_images(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "set", val=0) / "train"
    with pytest.raises(DataError, match="lies among the images"):
        masks_main(["--data", str(data), "--out", str(data / "masks")])
    shutil.rmtree(data)


@pytest.mark.parametrize("options", [["--source", "images"], ["--val", "5%"]])
def test_the_options_of_a_source_belong_to_data(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        beton.main(["--out", str(tmp_path), *options])
    assert caught.value.code == 2
