"""Subsets: what a list names, how shares are drawn, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from harl_fast.errors import DataError
from harl_fast.eval.subsets import choose, hold_out, write_subset

CLASSES = [f"n{number:08d}" for number in range(40)]


def container(*, sizes: list[int] | None = None) -> tuple[list[str], np.ndarray]:
    """Return names as a conversion writes them, and labels."""
    sizes = sizes or [100] * len(CLASSES)
    labels = np.repeat(np.arange(len(CLASSES)), sizes)
    names = [
        f"train/{CLASSES[label]}/{CLASSES[label]}_{row}.JPEG" for row, label in enumerate(labels)
    ]
    return names, labels


def listed(tmp_path: Path, *lines: str, end: str = "\n") -> Path:
    path = tmp_path / "subset.txt"
    path.write_text(end.join(lines) + end)
    return path


def test_a_list_like_the_published_one_percent_is_found_whole(tmp_path: Path) -> None:
    """Of 1000 classes 811 give 13 images and 189 give 12, as bare names: 12,811 lines."""
    classes = [f"n{number:08d}" for number in range(1000)]
    labels = np.repeat(np.arange(1000), 40)
    names = [f"train/{classes[c]}/{classes[c]}_{i}.JPEG" for i, c in enumerate(labels)]
    rng = np.random.default_rng(0)
    picked = [
        row
        for c in range(1000)
        for row in rng.choice(np.flatnonzero(labels == c), 13 if c < 811 else 12, replace=False)
    ]
    rng.shuffle(picked)
    path = listed(tmp_path, *(Path(names[row]).name for row in picked), end="\r\n")
    ids = choose(names, labels, classes, subset=path)
    assert ids.tolist() == sorted(picked) and len(ids) == 12_811
    assert set(np.bincount(labels[ids.numpy()])) == {12, 13}


def test_the_published_one_percent_is_found_whole() -> None:
    folder = os.environ.get("HARL_FAST_SUBSETS")
    if not folder:
        pytest.skip("HARL_FAST_SUBSETS is not set: give it a folder with SimCLR's 1percent.txt")
    path = Path(folder) / "1percent.txt"
    lines = path.read_text().split()
    classes = sorted({line.partition("_")[0] for line in lines})
    others = [f"{wnid}_{1_000_000 + i}.JPEG" for wnid in classes for i in range(7)]
    every = sorted(lines + others)
    names = [f"train/{name.partition('_')[0]}/{name}" for name in every]
    labels = np.searchsorted(classes, [name.partition("_")[0] for name in every])
    ids = choose(names, labels, classes, subset=path)
    assert {every[i] for i in ids.tolist()} == set(lines) and len(ids) == 12_811
    assert np.bincount(np.bincount(labels[ids.numpy()]))[12:].tolist() == [189, 811]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_name_may_have_as_many_folders_as_it_needs(tmp_path: Path, depth: int) -> None:
    names, labels = container(sizes=[2] * 40)
    lines = ["/".join(names[row].split("/")[-depth:]) for row in range(0, 80, 2)]
    ids = choose(names, labels, CLASSES, subset=listed(tmp_path, *lines, ""))
    assert ids.tolist() == list(range(0, 80, 2))


def test_shares_are_balanced_nested_and_reproducible() -> None:
    names, labels = container(sizes=[5 + 20 * (number % 10) for number in range(40)])
    one, ten, half = (set(choose(names, labels, CLASSES, subset=s).tolist()) for s in
                      ("1%", "10%", "50%"))  # fmt: skip
    assert one < ten < half
    assert len(one) == 40  # a percent would be 38: each class has one
    assert len(ten) == round(0.1 * len(names))
    counts = np.bincount(labels[sorted(ten)], minlength=40)
    sizes = np.bincount(labels)
    # A class gives all it has, or as many as any other to within one.
    assert all(c == size or counts.max() - c <= 1 for c, size in zip(counts, sizes, strict=True))
    again = choose(names[::-1], labels[::-1].copy(), CLASSES, subset="10%")
    assert {names[::-1][row] for row in again.tolist()} == {names[row] for row in ten}
    assert set(choose(names, labels, CLASSES, subset="10%", seed=1).tolist()) != ten


def test_so_many_per_class_are_so_many_and_nested() -> None:
    names, labels = container()
    five, seven = (choose(names, labels, CLASSES, subset=f"{n}-per-class") for n in (5, 7))
    assert (np.bincount(labels[five.numpy()]) == 5).all()
    assert set(five.tolist()) < set(seven.tolist())
    assert torch.equal(five, five.sort().values)
    # Drawn at random, not the first of each class.
    assert set(five.tolist()) != {c * 100 + i for c in range(40) for i in range(5)}


def test_what_is_held_out_is_a_share_but_leaves_one_of_each_class() -> None:
    names, labels = container()
    share = choose(names, labels, CLASSES, subset="10%", seed=3)
    held = hold_out(names, labels, CLASSES, count=len(share), seed=3)
    assert held.tolist() == share.tolist()
    names, labels = container(sizes=[1, 2, *[100] * (len(CLASSES) - 2)])
    held = hold_out(names, labels, CLASSES, count=40 * len(CLASSES))
    counts = np.bincount(labels[held], minlength=len(CLASSES))
    assert counts[:2].tolist() == [0, 1] and len(held) == 40 * len(CLASSES)
    assert len(hold_out(names, labels, CLASSES, count=2)) == 2
    ones = ["a/0.jpg", "b/0.jpg"]
    assert not len(hold_out(ones, np.arange(2), ["a", "b"], count=2))


def test_a_whole_share_is_everything() -> None:
    names, labels = container()
    assert choose(names, labels, CLASSES, subset="100%").tolist() == list(range(4000))


def test_a_written_subset_is_read_back(tmp_path: Path) -> None:
    names, labels = container()
    ids = choose(names, labels, CLASSES, subset="2%")
    write_subset(tmp_path / "subset.txt", names, ids)
    assert torch.equal(choose(names, labels, CLASSES, subset=tmp_path / "subset.txt"), ids)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a/x.jpg", "b/x.jpg", "c/y.jpg"], r"1 of 3 names are no samples .*'c/y.jpg'; its own"),
        (["x.jpg", "a/y.jpg"], r"1 of 2 names are those of several samples \('x.jpg'; .* of 2\)"),
        (["a/x.jpg", "b/x.jpg", "a/x.jpg"], r"lists 1 names more than once \('a/x.jpg'\)"),
        (["train/a/x.jpg", "a/x.jpg", "b/x.jpg"], "more than once under several names"),
        (["a/x.jpg"], r"no sample of 1 of the 2 classes \('b'\)"),
        (["", " "], "is empty"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    names = ["train/a/x.jpg", "train/a/y.jpg", "train/b/x.jpg"]
    with pytest.raises(DataError, match=message) as caught:
        choose(names, np.array([0, 0, 1]), ["a", "b"], subset=listed(tmp_path, *lines))
    assert "\n" not in str(caught.value)


def test_at_most_five_examples_are_shown(tmp_path: Path) -> None:
    names, labels = container()
    path = listed(tmp_path, *(f"no{i}.JPEG" for i in range(9)))
    with pytest.raises(DataError, match=r"9 of 9 names .*'no4.JPEG', \.\.\.") as caught:
        choose(names, labels, CLASSES, subset=path)
    assert "no5" not in str(caught.value)


@pytest.mark.parametrize("subset", ["0%", "101%", "0-per-class", "101-per-class", "1 %", "five"])
def test_an_impossible_subset_is_refused(subset: str) -> None:
    names, labels = container()
    with pytest.raises(DataError, match=r"subset '?" + subset[0]):
        choose(names, labels, CLASSES, subset=subset)


def test_a_name_that_ends_in_a_space_is_read_back(tmp_path: Path) -> None:
    names, path = ["a/1.jpg ", "a/2.jpg", "b/1.jpg"], tmp_path / "subset.txt"
    write_subset(path, names, torch.tensor([0, 2]))
    found = choose(names, np.array([0, 0, 1]), ["a", "b"], subset=path)
    assert found.tolist() == [0, 2]
