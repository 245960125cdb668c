"""Training without labels: the network learns from noise, and the program around it behaves."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open

from harl_fast.errors import DataError, OutputError
from harl_fast.files import Progress
from harl_fast.pool import ordered_map
from preprocess.images.arrays import Mask
from preprocess.images.reading import DEFAULT_READING
from preprocess.masks.heuristic.binary import binarize, centred, otsu_level, resized
from preprocess.masks.heuristic.cues import barrier_distance
from preprocess.masks.heuristic.method import outlined
from preprocess.masks.selftrained import train as program
from preprocess.masks.selftrained.composites import UNHEARD, Augmenter, TrainingSet, Variety
from preprocess.masks.selftrained.dataset import _key, _read, gather, image_files
from preprocess.masks.selftrained.ensemble import MEMBERS, vote
from preprocess.masks.selftrained.network import (
    COUNT,
    Architecture,
    border_cues,
    load_network,
    predict,
)
from preprocess.masks.selftrained.score import iou
from preprocess.masks.selftrained.trainer import (
    BatchSampler,
    BatchSpec,
    Recipe,
    follow,
    mask_loss,
    train,
)
from preprocess.sources import Choices
from tests.preprocess.support import demo_image, photo, save

SIDE = 64
TINY = Architecture(side=SIDE, widths=(8, 16, 24, 32, 32), lateral=16, top=16)


def demo(count: int, *, split: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Return ``count`` generated images (N, 64, 64, 3) and their exact masks (N, 64, 64)."""
    drawn = [demo_image(index, seed=3, side=SIDE, split=split) for index in range(count)]
    return np.stack([one.image for one in drawn]), np.stack([one.mask for one in drawn])


def spoiled(mask: Mask, draw: np.random.Generator) -> Mask:
    """Return a mask moved by up to 10 %, with a random rectangle added and another removed."""
    moved = np.roll(mask, tuple(draw.integers(-6, 7, 2)), axis=(0, 1))
    for value in (True, False):
        top, left = draw.integers(8, 36, 2)
        height, width = draw.integers(8, 21, 2)
        moved[top : top + height, left : left + width] = value
    return moved


def halved(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    count, side = masks.shape[:2]
    cells = masks.reshape(count, side // 2, 2, side // 2, 2).mean(axis=(2, 4))
    return np.rint(255 * cells).astype(np.uint8)


def taught(
    images: npt.NDArray[np.uint8], targets: npt.NDArray[np.uint8], trust: float = 1
) -> TrainingSet:
    """Return a training_set without opinions: every member's map says nothing anywhere."""
    count, side = targets.shape[:2]
    silence = np.full((count, len(MEMBERS), side, side), UNHEARD, np.uint8)
    return TrainingSet(images, targets, silence, np.full(count, trust, np.float32))


def test_a_network_beats_the_noise_it_learns_from() -> None:
    draw = np.random.default_rng(0)
    images, truths = demo(90, split=0)
    noisy = np.stack([spoiled(truth, draw) for truth in truths])
    teacher = np.mean([iou(mask, truth) for mask, truth in zip(noisy, truths, strict=True)])
    training_set = taught(images, halved(noisy))
    recipe = Recipe(TINY, steps=(90,), batch=12, lr_peak=4e-3, average=0.98, bfloat16=False)
    with Progress(90 * 12, label="test") as progress:
        net = train(training_set, recipe, refresh=lambda *_: training_set, progress=progress)
    others, exact = demo(40, split=1)
    # The network alone, without its ensemble, whose own maps would help here.
    silence = np.full((40, len(MEMBERS), SIDE // 2, SIDE // 2), UNHEARD / 255, np.float32)
    maps = predict(net.fold(), others, silence, bfloat16=False)
    masks = [binarize(resized(soft, SIDE))[0] for soft in maps]
    pupil = np.mean([iou(mask, truth) for mask, truth in zip(masks, exact, strict=True)])
    assert pupil > teacher + 0.05, f"pupil {pupil:.3f}, teacher {teacher:.3f}"


def test_pasted_objects_have_exact_targets() -> None:
    """White squares on black go onto grey images: after pasting, white is what targets name."""
    images = np.full((8, SIDE, SIDE, 3), 90, np.uint8)
    targets = np.zeros((8, SIDE // 2, SIDE // 2), np.uint8)
    images[:4] = 0
    images[:4, 16:48, 20:44] = 255
    targets[:4, 8:24, 10:22] = 255
    trust = np.array([1] * 4 + [0.5] * 4, np.float32)
    # No background image is ever one with a square: only the first four are donors.
    variety = Variety(paste=1.0, clear=0.0, grey=0.0, blur=0.0, donor_trust=0.9)
    batches = Augmenter(replace(taught(images, targets), trust=trust), variety)
    np.testing.assert_array_equal(batches.donors, range(4))
    draw = np.random.default_rng(1)
    pixels, target, weight, opinions = batches.draw(np.array([4, 5, 6, 7] * 8), draw)
    np.testing.assert_allclose(opinions, UNHEARD / 255)
    found = 0
    for image, cells, trusted in zip(pixels, target, weight, strict=True):
        small = image.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean(axis=(1, 3, 4))
        inside = cells > 0.99
        if inside.sum() < 20:
            continue  # pasted mostly outside the picture
        found += 1
        outside = cells < 0.01
        assert small[inside].min() > small[outside].max() + 5
        assert trusted[inside].min() == 1.0
        assert trusted[outside].max() <= 0.5
    assert found > 20


def test_batches_are_the_same_whoever_draws_them() -> None:
    images, truths = demo(8, split=0)
    sampler = BatchSampler(Augmenter(taught(images, halved(truths)), Variety()))
    spec = BatchSpec(np.arange(8), (0, 1, 2))
    here = sampler(spec)
    with contextlib.closing(
        ordered_map(sampler, [spec], workers=1, describe=lambda _: "a spec")
    ) as results:
        (there,) = results
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)


def test_batches_repeat_with_the_same_generator_state() -> None:
    images, truths = demo(12, split=0)
    batches = Augmenter(taught(images, halved(truths)), Variety())
    first = batches.draw(np.arange(12), np.random.default_rng(5))
    second = batches.draw(np.arange(12), np.random.default_rng(5))
    other = batches.draw(np.arange(12), np.random.default_rng(6))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != other[0]).any()


def test_some_opinions_are_withheld_and_the_rest_follow_the_image() -> None:
    images = np.zeros((4, SIDE, SIDE, 3), np.uint8)
    images[:, :, 32:] = 255
    halves = images[:, ::2, ::2, 0]
    maps = np.stack([halves] * len(MEMBERS), axis=1)
    training_set = replace(taught(images, halves), opinions=maps)
    variety = Variety(paste=0.0, deaf=0.5, mute=0.25, blur=0.0, grey=0.0)
    batches = Augmenter(training_set, variety)
    _, target, _, heard = batches.draw(np.arange(400) % 4, np.random.default_rng(0))
    silent = np.isclose(heard, UNHEARD / 255).all(axis=(2, 3))
    # 1 - 0.5 x 0.75 = 0.625 of all maps are withheld; 2,000 draws, but whole samples at a time.
    assert 0.55 < silent.mean() < 0.7
    for cells, maps, quiet in zip(target, heard, silent, strict=True):
        for soft in maps[~quiet]:
            np.testing.assert_allclose(soft, cells, atol=1 / 255)


def test_cells_without_weight_do_not_teach() -> None:
    logits = torch.zeros(2, 8, 8, requires_grad=True)
    target = torch.zeros(2, 8, 8)
    target[:, :4] = 1
    weight = torch.ones(2, 8, 8)
    weight[:, :, :3] = 0
    mask_loss(logits, target, weight).backward()
    gradient = logits.grad
    assert gradient is not None
    assert (gradient[:, :, :3] == 0).all()
    assert (gradient[:, :4, 3:] < 0).all() and (gradient[:, 4:, 3:] > 0).all()


def test_the_loss_is_zero_only_for_the_right_map() -> None:
    target = torch.zeros(1, 8, 8)
    target[:, 2:6, 2:6] = 1
    weight = torch.ones(1, 8, 8)
    right = mask_loss(100 * (2 * target - 1), target, weight)
    wrong = mask_loss(-100 * (2 * target - 1), target, weight)
    # Nothing in common: IoU (0 + 1) / (64 + 1), and every cell is 100 nats off.
    torch.testing.assert_close(right, torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(wrong, torch.tensor(100 + 1 - 1 / 65), atol=1e-3, rtol=0)


def test_averaged_weights_follow_by_the_stated_share() -> None:
    mean, net = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    torch.nn.init.constant_(net.weight, 3.0)
    torch.nn.init.constant_(net.running_mean, 8.0)
    follow(mean, net, keep=0.75)
    torch.testing.assert_close(mean.weight.detach(), torch.full((2,), 1.5))
    torch.testing.assert_close(mean.running_mean, torch.full((2,), 2.0))


def test_a_centred_map_has_its_threshold_at_one_half() -> None:
    soft = np.tile(np.linspace(0, 0.6, 64, dtype=np.float32), (64, 1))
    level = otsu_level(soft)
    assert abs(level - 0.3) < 0.02
    np.testing.assert_array_equal(centred(soft) > 0.5, soft > level)
    assert centred(np.zeros((8, 8), np.float32)).max() == 0


def test_an_outline_moves_to_the_edges() -> None:
    """A belief pushed aside by 6 % comes back to the object, whose colours and edges it knows."""
    images, truths = demo(12, split=0)
    before, after = [], []
    for image, truth in zip(images, truths, strict=True):
        soft = np.roll(np.where(truth, 0.8, 0.2).astype(np.float32), 4, axis=1)
        before.append(iou(soft > 0.5, truth))
        result = outlined(image, soft)
        assert result.shape == (128, 128) and 0 <= result.min() and result.max() <= 1
        after.append(iou(binarize(resized(result, SIDE))[0], truth))
    assert np.mean(after) > np.mean(before) + 0.03, (np.mean(before), np.mean(after))


def test_the_ensemble_agrees_on_the_obvious_and_on_nothing_in_nothing() -> None:
    plain = np.full((96, 96, 3), (40, 90, 160), np.uint8)
    assert vote(plain).agreement == 0.0
    plain[30:70, 36:64] = (220, 60, 30)
    obvious = vote(plain)
    truth = np.zeros((96, 96), np.bool_)
    truth[30:70, 36:64] = True
    cells = np.kron(obvious.share > 127, np.ones((3, 3), np.bool_))[::2, ::2]
    assert iou(cells, truth) > 0.85
    assert obvious.agreement > 0.85
    assert len(MEMBERS) >= 3


def test_border_cues_mark_what_differs_from_the_border() -> None:
    image = np.full((64, 64, 3), 120, np.uint8)
    image[20:44, 20:44] = (200, 30, 30)
    cues = border_cues(image, 32)
    assert cues.shape == (COUNT, 32, 32) and cues.dtype == np.float32
    assert 0 <= cues.min() and cues.max() <= 1
    assert (cues[:, 11:21, 11:21] > 0.5).all()
    assert (cues[:, :8] < 0.05).all()


def test_barrier_distance_of_a_ring() -> None:
    """Inside a wall of height 5 every path must climb 5; an inner pit of -2 makes it 7."""
    values = np.zeros((9, 9), np.float32)
    values[2:7, 2:7] = 5
    values[3:6, 3:6] = 0
    values[4, 4] = -2
    distance = barrier_distance(values[None])
    assert distance[1, 1] == 0 and distance[2, 4] == 5 and distance[3, 3] == 5
    assert distance[4, 4] == 7


def images_in(folder: Path, count: int) -> Path:
    for index in range(count):
        save(photo(index), folder / f"{index:02d}.jpg", quality=95)
    return folder


def test_image_files_are_those_of_train_sorted_and_limited(tmp_path: Path) -> None:
    images_in(tmp_path / "train" / "b", 12)
    images_in(tmp_path / "train" / "a" / "deep", 12)
    images_in(tmp_path / "val" / "a", 3)
    images_in(tmp_path / "train" / ".hidden", 1)
    (tmp_path / "train" / "notes.txt").write_text("no image")
    files = image_files(tmp_path, Choices(), most=100, seed=0)
    assert len(files) == 24 and files == sorted(files)
    assert files[0] == tmp_path / "train" / "a" / "deep" / "00.jpg"
    some = image_files(tmp_path, Choices(), most=17, seed=0)
    assert len(some) == 17 and set(some) < set(files) and some == sorted(some)
    assert some == image_files(tmp_path, Choices(), most=17, seed=0)
    assert some != image_files(tmp_path, Choices(), most=17, seed=1)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; give the folder"):
        image_files(tmp_path / "none", Choices(), most=9, seed=0)
    with pytest.raises(DataError, match=r"holds 3 training images, at least 16 are needed"):
        image_files(images_in(tmp_path / "few", 3), Choices(), most=9, seed=0)


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_unreadable_images_are_left_out_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = images_in(tmp_path / "images", 17)
    (folder / "05.jpg").write_bytes(b"no JPEG")
    files = image_files(folder, Choices(), most=100, seed=0)
    cache = tmp_path / "masks.votes.npz"
    first = gather(files, cache, side=32, workers=1)
    assert len(first.images) == 16 and first.unreadable == 1
    assert "left out: " in (out := capsys.readouterr().out) and "05.jpg" in out
    again = gather(files, cache, side=32, workers=1)
    assert "taken from" in capsys.readouterr().out
    np.testing.assert_array_equal(first.shares, again.shares)
    whole = cache.read_bytes()
    flag, method = (whole.index(b"PK\1\2") + at for at in (8, 10))  # of the first entry
    for damaged in (b"", whole[:1000], *(_flipped(whole, at) for at in (600, flag, method))):
        cache.write_bytes(damaged)
        assert _read(cache, _key(files, 32, DEFAULT_READING)) is None
        assert f"not used: {cache} is damaged" in capsys.readouterr().out
    for other in ({"images": first.images[1:]}, {"agreement": first.agreement.astype(str)}):
        np.savez(cache, key=_key(files, 32, DEFAULT_READING), **(vars(first) | other))
        assert _read(cache, _key(files, 32, DEFAULT_READING)) is None
        assert "is damaged (" in capsys.readouterr().out
    third = gather(files, cache, side=32, workers=1)
    np.testing.assert_array_equal(first.images, third.images)
    (folder / "06.jpg").write_bytes(b"no JPEG either")
    with pytest.raises(DataError, match=r"only 15 of 17 images can be read .*05\.jpg"):
        gather(files, cache, side=32, workers=1)


@pytest.mark.parametrize("out", ["masks.pt", "masks"])
def test_other_file_names_are_refused(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.parse(["--data", "x", "--out", out])
    assert "does not end in .safetensors" in capsys.readouterr().err


def test_the_program_writes_a_network_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = images_in(tmp_path / "images", 16)
    recipe = Recipe(TINY, steps=(2, 2), batch=4, bfloat16=False)
    monkeypatch.setattr(program, "Recipe", lambda seed: recipe)
    out = tmp_path / "masks.safetensors"
    command = ["--data", str(folder), "--out", str(out), "--threads", "1"]
    assert program.main(command) == 0
    text = capsys.readouterr().out
    assert "16 images are few" in text and "no labels" in text and "selftrained:" in text
    first = out.read_bytes()
    with safe_open(out, framework="np") as file:
        header = json.loads(file.metadata()["harl_fast"])
    assert header["images"] == 16 and header["supervision"] == "none"
    assert header["recipe"]["steps"] == [2, 2]
    (soft,) = load_network(out).maps([photo(1)])
    assert soft.shape == (128, 128)
    assert program.main(command) == 0
    assert out.read_bytes() == first, "same images, seed and threads: same file"


def test_too_few_images_by_the_option_are_refused_and_dead_links_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = images_in(tmp_path / "in", 17)
    with pytest.raises(DataError, match="--images 5 is too few: give 16 or more"):
        image_files(folder, Choices(), most=5, seed=0)
    (folder / "dead.jpg").symlink_to("/nowhere")
    files = image_files(folder, Choices(), most=100, seed=0)
    made = gather(files, tmp_path / "votes.npz", side=SIDE, workers=1)
    assert (len(made.images), made.unreadable) == (len(files) - 1, 1)
    assert "dead.jpg" in capsys.readouterr().out


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_stands_where_the_votes_belong_is_refused_before_the_work(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "n.votes.npz")
    command = ["--data", str(tmp_path), "--out", str(tmp_path / "n.safetensors")]
    with pytest.raises(OutputError, match=r"n\.votes\.npz is not a regular file"):
        program.main(command)
