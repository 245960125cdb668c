"""The part that is held out: reproducible, of each class its share, by name and not by place."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from harl_fast.errors import DataError
from preprocess.sources import Choices, Split, folder_source, read_source
from preprocess.sources.base import UNLABELLED
from preprocess.sources.heldout import hold_out
from preprocess.sources.options import add_choices, choices_of, parse_share
from tests.preprocess.test_sources import layout


def split(counts: dict[int, int]) -> Split:
    names = [f"{label}/{n}.jpg" for label, count in counts.items() for n in range(count)]
    return Split(names, [int(name.split("/")[0]) for name in names], root=Path("/set"))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.9, 0.999])
def test_each_class_gives_its_share_and_keeps_one(share: float) -> None:
    whole = split({0: 100, 1: 41, 2: 2, 3: 1})
    parts, _ = hold_out(whole, Choices(val=share))
    held = np.bincount(parts["val"].labels, minlength=4).tolist()
    expected = [min(max(round(share * count), 1), count - 1) for count in (100, 41, 2)]
    assert held == [*expected, 0]
    both = sorted(parts["train"].names + parts["val"].names)
    assert both == sorted(whole.names)
    assert dict(zip(whole.names, whole.labels, strict=True)) == {
        name: label
        for part in parts.values()
        for name, label in zip(part.names, part.labels, strict=True)
    }


def test_names_decide_and_neither_order_nor_other_classes() -> None:
    whole = split({0: 60, 1: 40})
    first = set(hold_out(whole, Choices())[0]["val"].names)
    turned = hold_out(whole.take(range(99, -1, -1)), Choices())[0]["val"].names
    more = hold_out(split({0: 60, 1: 40, 2: 500}), Choices())[0]["val"].names
    assert set(turned) == first == {name for name in more if not name.startswith("2/")}
    assert set(hold_out(whole, Choices(seed=1))[0]["val"].names) != first


def test_images_added_later_move_others_only_at_the_edge_of_the_share() -> None:
    before = set(hold_out(split({0: 1000}), Choices())[0]["val"].names)
    after = set(hold_out(split({0: 1100}), Choices())[0]["val"].names)
    old = {f"0/{n}.jpg" for n in range(1000)}
    assert len(before) == 50 and len(after) == 55
    assert len(before ^ (after & old)) <= 5  # of 1000; by place it would be nearly all


def test_the_chosen_ones_are_fixed_for_good() -> None:
    found = hold_out(split({0: 40, 1: 40}), Choices())[0]["val"].names
    assert found == ["0/30.jpg", "0/38.jpg", "1/28.jpg", "1/35.jpg"]


def test_nothing_is_held_out_without_labels_unless_asked_for() -> None:
    whole = Split([f"{n}.jpg" for n in range(40)], [UNLABELLED] * 40, root=Path("/set"))
    assert hold_out(whole, Choices())[0].keys() == {"train"}
    parts, (said,) = hold_out(whole, Choices(val=0.1))
    assert len(parts["val"].names) == 4 and "4 of 40 images (0.1)" in said
    assert hold_out(split({0: 9, 1: 9}), Choices(val=0.0))[0].keys() == {"train"}


def test_classes_of_one_image_hold_nothing_out() -> None:
    assert hold_out(split({0: 1, 1: 1}), Choices())[0].keys() == {"train"}
    with pytest.raises(DataError, match=r"no class has two images.*give --val 0"):
        hold_out(split({0: 1, 1: 1}), Choices(val=0.1))


def test_a_source_with_a_val_of_its_own_takes_no_share(tmp_path: Path) -> None:
    layout(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "valid/a/1.jpg")
    with pytest.raises(DataError, match=r"held-out part of its own, valid/: leave --val out"):
        read_source(tmp_path, Choices(val=0.1))
    with pytest.raises(DataError, match=r"valid/: leave --val-seed out"):
        read_source(tmp_path, Choices(seed=3))
    with pytest.raises(DataError, match=r"--val-seed 3: nothing is held out; give --val as well"):
        hold_out(split({0: 9, 1: 9}), Choices(val=0.0, seed=3))
    assert read_source(tmp_path, Choices()).splits["val"].names == ["valid/a/1.jpg"]


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_columns_of_folders_are_refused(tmp_path: Path, option: str) -> None:
    layout(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    told = f"--{option.replace('_', '-')} none is for --source parquet.* class folders"
    with pytest.raises(DataError, match=told):
        read_source(tmp_path, Choices(**{option: "none"}))  # type: ignore[arg-type]


def test_train_alone_holds_out_and_keeps_the_report_with_train(tmp_path: Path) -> None:
    layout(tmp_path, *(f"train/{kind}/{n}.jpg" for kind in "ab" for n in range(20)), "train/a/x.md")
    source = folder_source(tmp_path)
    assert [len(source.splits[name].names) for name in ("train", "val")] == [38, 2]
    assert source.splits["val"].rejected == []
    assert [item.name for item in source.splits["train"].rejected] == ["train/a/x.md"]
    assert all(path.is_file() for path in map(source.splits["val"].image, range(2)))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), ("0", 0.0), ("0.1", 0.1), ("0%", 0.0), ("99.5%", 0.995)]
)
def test_shares_are_read_with_and_without_percent(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)
    parser = argparse.ArgumentParser()
    add_choices(parser)
    assert choices_of(parser.parse_args(["--val", text])).val == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "1", "100%", "-1%", "five", "", "%", "nan", "5%%"])
def test_other_shares_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no share|no number"):
        parse_share(text)
