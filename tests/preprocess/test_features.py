"""Masks by an encoder's features: drawn maps with known answers, the border, facts, refusals."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from harl_fast.engine.networks import load_pretrained
from harl_fast.errors import DataError, HarlError
from harl_fast.lock import FOLDER_LOCK, locked
from preprocess.images.decode import decode_image
from preprocess.images.reading import DEFAULT_READING
from preprocess.masks import __main__ as masks
from preprocess.masks import find_mask, open_method, parse_spec
from preprocess.masks.controls import CANVAS_PX
from preprocess.masks.features import (
    belief,
    cell_features,
    cosine_clusters,
    opened,
    outlined_belief,
)
from preprocess.masks.heuristic.binary import binarize, centre_ellipse
from preprocess.masks.maskfile import read_made
from preprocess.masks.registry import method_facts, to_mask, try_method
from tests.engine.saved import checkpoint
from tests.preprocess.support import image_folder, photo

SIDE = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("runs") / "first")


def saved(folder: Path, **spoil: float) -> Path:
    """Write a run of a small random encoder."""
    named = {f"{name.replace('__', '.')}": value for name, value in spoil.items()}
    checkpoint(folder, spoil=named, arch="resnet18", width=0.125, stem="small")
    return folder


def drawn(names: npt.NDArray[np.int64], *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return noisy features of cells: of each name a direction of its own, of any length."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(16, 16)))[0][: names.max() + 1]
    lengths = rng.uniform(0.1, 10, (*names.shape, 1))
    noise = rng.normal(size=(*names.shape, 16)) * 0.03
    return np.asarray((directions[names] + noise) * lengths, np.float32)


def scene() -> npt.NDArray[np.int64]:
    """Return sky (0) over meadow (1), before them a body (2) with a head (3)."""
    names = np.zeros((SIDE, SIDE), np.int64)
    names[6:] = 1
    names[5:10, 3:8] = 2
    names[2:6, 7:10] = 3
    return names


def test_clusters_are_what_was_drawn() -> None:
    names = scene().ravel()
    owners = cosine_clusters(drawn(names), 4)
    assert len({*zip(names.tolist(), owners.tolist(), strict=True)}) == len({*owners}) == 4


def test_each_vector_is_nearest_to_its_own_clusters_mean_direction() -> None:
    """A fixed point of k-means, by torch in double precision, on vectors that form no clusters."""
    vectors = np.random.default_rng(3).normal(size=(60, 3)).astype(np.float32)
    owners = torch.from_numpy(cosine_clusters(vectors, 3))
    units = functional.normalize(torch.from_numpy(vectors).double(), dim=1)
    means = torch.stack([functional.normalize(units[owners == k].sum(0), dim=0) for k in range(3)])
    assert torch.equal((units @ means.T).argmax(1), owners)


def test_what_lies_along_the_border_is_background() -> None:
    got = belief(drawn(scene()), clusters=[4])
    np.testing.assert_array_equal(got, (scene() >= 2).astype(np.float32))


def test_what_touches_the_border_is_foreground_in_part() -> None:
    """Two of 20 cells are a third as many as the 44 of 144 of the image."""
    names = np.zeros((SIDE, SIDE), np.int64)
    names[2:12, 5:7] = 1
    expected = np.where(names == 1, 1 - (2 / 20) / (44 / 144), 0)
    np.testing.assert_allclose(belief(drawn(names), clusters=[2]), expected, atol=1e-6)


def test_several_numbers_of_clusters_are_averaged() -> None:
    cells = drawn(scene())
    one, other = (belief(cells, clusters=[count]) for count in (2, 6))
    assert (one != other).any()
    np.testing.assert_allclose(belief(cells, clusters=[2, 6]), (one + other) / 2, atol=1e-6)


def test_the_map_follows_the_edges_of_the_pixels() -> None:
    """A red body on blue, of which the cells know a coarser outline."""
    y, x = np.mgrid[:256, :256]
    body = np.hypot(y - 128, x - 120) < 70
    rgb = np.where(body[..., None], (200, 40, 40), (40, 60, 160)).astype(np.uint8)
    coarse = cv2.resize(body.astype(np.float32), (6, 6), interpolation=cv2.INTER_AREA) > 0.5
    soft = outlined_belief(rgb, coarse.astype(np.float32))
    assert soft.shape == (128, 128) and soft.dtype == np.float32
    mask, stand_in = binarize(soft)
    assert not stand_in and (mask == body[::2, ::2]).mean() > 0.98


@pytest.mark.parametrize("flat", [0.0, 1.0])
def test_where_nothing_or_everything_is_foreground_the_centre_ellipse_stands_in(
    flat: float,
) -> None:
    soft = outlined_belief(photo(1), np.full((SIDE, SIDE), flat, np.float32))
    assert not soft.any()
    mask, stand_in = to_mask(parse_spec("{features: run}"), soft)
    assert stand_in
    np.testing.assert_array_equal(mask, centre_ellipse(CANVAS_PX))


def test_cells_that_are_all_alike_are_background() -> None:
    flat = belief(np.ones((SIDE, SIDE, 8), np.float32), clusters=[3, 6])
    assert flat.max() < 1e-6 and not outlined_belief(photo(1), flat).any()


@pytest.mark.parametrize("level", [2, 4])
def test_features_are_those_of_the_encoder_on_normalised_pixels(run: Path, level: int) -> None:
    pixels = np.stack([photo(1, height=64), photo(2, height=64)])
    encoder = load_pretrained(run)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (encoder.mean, encoder.std))
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        for stage in encoder.backbone.stages()[: level + 1]:
            x = stage(x)
    got = torch.from_numpy(cell_features(opened(str(run)), pixels, level=level))
    torch.testing.assert_close(got.permute(0, 3, 1, 2), x, rtol=1e-4, atol=1e-4)


def test_maps_depend_on_nothing_but_the_image(run: Path) -> None:
    maps = open_method(parse_spec(f"{{features: {{run: {run}, size: 64}}}}"))
    images = [photo(seed, height=40 + seed) for seed in range(20)]
    softs = maps(images)
    for soft, again in zip(softs, maps(images), strict=True):
        assert soft.shape == (128, 128) and soft.dtype == np.float32
        np.testing.assert_array_equal(soft, again)
    np.testing.assert_allclose(softs[17], maps([images[17]])[0], atol=1e-3)


def test_a_grey_encoder_sees_luma(tmp_path: Path) -> None:
    checkpoint(tmp_path / "grey", arch="resnet18", width=0.125, stem="small", in_channels=1)
    try_method(parse_spec(f"{{features: {{run: {tmp_path}/grey, size: 64}}}}"))


def test_facts_change_with_the_weights_and_with_nothing_else(tmp_path: Path, run: Path) -> None:
    """Not with where a run lies, but for its name."""
    first, same = (
        method_facts(parse_spec(f"{{features: {folder}}}"))
        for folder in (run, saved(tmp_path / "elsewhere/first"))
    )
    assert first == same and first["parameters"]["run"] == "first"
    assert first["supervision"] == "unknown" and str(tmp_path) not in str(same)
    other = method_facts(parse_spec(f"{{features: {saved(tmp_path / 'first', bn1__bias=0.5)}}}"))
    assert {key for key in first if first[key] != other[key]} == {"sha256"}


def test_make_masks_makes_them_in_workers_and_keeps_them_for_their_weights(
    tmp_path: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = image_folder(tmp_path / "set", train=3, val=1), tmp_path / "masks"

    def made_by(folder: Path) -> int:
        method = f"{{features: {{run: {folder}, size: 64}}}}"
        words = ["--data", f"{data}", "--out", f"{out}", "--mask-method", method, "--workers", "2"]
        return masks.main(words)

    opened.cache_clear()
    assert made_by(run) == 0
    told = capfd.readouterr()
    assert told.err.count("weights: ") == 1 and str(run) not in (out / "masks.json").read_text()
    made = read_made(out / "train/class1/2.png")
    assert made is not None and not made.record.problem
    pixels = decode_image(data / "train/class1/2.jpg", side_px=512, reading=DEFAULT_READING).rgb
    expected, stand_in = find_mask(pixels, f"{{features: {{run: {run}, size: 64}}}}")
    assert made.record.stand_in == stand_in
    assert (made.mask == expected).mean() > 0.999
    assert made_by(run) == 0 and "train: 6 masks, 6 there before" in capfd.readouterr().out
    with pytest.raises(DataError, match=r"holds other masks: its method"):
        made_by(saved(tmp_path / "other/first", bn1__bias=0.5))


def test_wrong_runs_are_refused_in_one_line(tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    for name in ("gone", "empty", "photo.jpg"):
        with pytest.raises(HarlError, match=re.escape(f"{tmp_path / name}")) as caught:
            try_method(parse_spec(f"{{features: {tmp_path / name}}}"))
        assert "\n" not in str(caught.value)
    opened.cache_clear()
    with locked(run / FOLDER_LOCK, output=run):
        with pytest.raises(DataError, match=r"is being written by process .*give a step file"):
            opened(str(run))
        (step,) = (run / "checkpoints").glob("*.safetensors")
        assert opened(str(step)).receipt.matched == opened(str(step)).receipt.total


def test_networks_without_stages_say_which_level_they_have(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harl_fast.model.backbone import Backbone
    from harl_fast.model.resnet import ResNet

    monkeypatch.setattr(ResNet, "channels", Backbone.channels)
    open_method.cache_clear()
    with pytest.raises(HarlError, match=r"write \{features: \{run: .*first, level: 4\}\}"):
        open_method(parse_spec(f"{{features: {{run: {run}, size: 96}}}}"))
