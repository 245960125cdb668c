"""Sets of one channel: grey JPEGs, masks and views of the luma, whatever the store."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from harl_fast.config import ViewConfig
from harl_fast.data.container.manifest import read_manifest
from harl_fast.data.loader import BetonLoader, EvalLoader
from harl_fast.data.reader import OpenContainer, read_samples
from harl_fast.data.views.color_device import Colouring
from harl_fast.data.views.crop import ViewGeometry, draw_view, geometry_table
from harl_fast.errors import ConfigError
from harl_fast.rng import GEOMETRY, stream
from preprocess import beton, verify
from preprocess.encode import encode_jpeg
from preprocess.images.decode import decode_image
from preprocess.images.reading import NO_COLOUR, Reading
from preprocess.masks.__main__ import main as masks_main
from tests.preprocess.support import image_folder, photo, save

VIEWS = [ViewGeometry(size_px=32, cells=4), ViewGeometry(size_px=40, cells=5)]


def write(data: Path, out: Path, *options: str) -> Path:
    fixed = ["--data", str(data), "--out", str(out), "--mask-size", "32", "--workers", "1"]
    assert beton.main([*fixed, *options]) == 0
    return out / "train.beton"


@pytest.fixture(scope="module")
def grey_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set") / "grey"
    for split, count in (("train", 6), ("val", 2)):
        for index in range(2 * count):
            pixels = photo(index + len(split), height=70 + 8 * index, width=150)[..., 1]
            save(pixels, root / f"{split}/class{index % 2}/{index}.png")
    return root


def luma(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    return rgb.astype(np.float64) @ (0.299, 0.587, 0.114)


def views_of(path: Path, channels: int, **options: object) -> list[npt.NDArray[np.generic]]:
    """Return each view of all samples, (N, S, S, C) or, coloured, (N, C, S, S)."""
    count = read_manifest(path).count
    loader = BetonLoader(
        path, views=VIEWS, batch_global=4, batch_micro=4, seed=1, channels=channels, **options
    )
    parts = [[view.clone().numpy() for view in batch.views] for batch in loader.shown(range(count))]
    loader.close()
    return [np.concatenate(view) for view in zip(*parts, strict=True)]


def expected_view(image: npt.NDArray[np.uint8], sample: int, view: int) -> npt.NDArray[np.float64]:
    """Return a view of an (H, W) picture by torchvision's resize in float64."""
    row = geometry_table(VIEWS)[view]
    key = np.uint64(stream(1, 0, sample, view, GEOMETRY))
    top, left, height, width, flip, _ = draw_view(
        key, *image.shape, row, np.empty((0, 0), np.int32)
    )
    crop = torch.from_numpy(image[top : top + height, left : left + width].astype(np.float64))
    side = VIEWS[view].size_px
    sized = functional.resize(crop[None], [side, side], antialias=True)[0].numpy()
    return sized[:, ::-1] if flip else sized


def jpegs(path: Path) -> list[bytes]:
    container = OpenContainer(path)
    found = [container.image_bytes(sample) for sample in range(container.manifest.count)]
    return [one.tobytes() for one in found if one is not None]


def test_grey_sets_are_grey_jpegs_and_views_of_one_channel(
    grey_folder: Path, tmp_path: Path
) -> None:
    path = write(grey_folder, tmp_path / "out", "--channels", "1", "--quality", "95")
    manifest = read_manifest(path)
    assert manifest.store["channels"] == 1 and manifest.store["remarks"] == {}
    for data in jpegs(path):
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == "L"
        assert b"\xff\xd0" in data  # restart markers: the loader decodes parts
    samples = read_samples(path, range(manifest.count))
    one, three = views_of(path, 1), views_of(path, 3)
    for view, side in enumerate((32, 40)):
        assert one[view].shape == (manifest.count, side, side, 1)
        for sample in samples:
            want = expected_view(sample.image[..., 0], sample.id, view)
            assert np.abs(one[view][sample.id, ..., 0] - want).max() <= 1.0
        assert np.abs(three[view].astype(int) - one[view]).max() <= 1  # as ever: grey chroma
    assert verify.main([str(path), "--deep"]) == 0


@pytest.mark.parametrize("store", ["jpg", "raw", "yuv420", "passthrough"])
def test_a_colour_container_shows_its_luma(tmp_path: Path, store: str) -> None:
    path = write(image_folder(tmp_path / "set"), tmp_path / "out", "--store", store)
    assert "channels" not in read_manifest(path).store
    for one, three in zip(views_of(path, 1), views_of(path, 3), strict=True):
        away = np.abs(one[..., 0] - luma(three))
        assert away.mean() < 0.6 and (away > 1.5).mean() < 0.02  # colours that RGB cannot hold


def test_coloured_views_of_the_loader_are_those_of_the_device(
    grey_folder: Path, tmp_path: Path
) -> None:
    from harl_fast.data.views.color_device import Photometric

    path = write(grey_folder, tmp_path / "out", "--channels", "1")
    policies = [ViewConfig(size_px=32), ViewConfig(size_px=40, solarize_p=0.5, blur_p=0.5)]
    colour = Colouring(tuple(policies), mean=(0.4,), std=(0.2,))
    device = Photometric(policies, mean=(0.4,), std=(0.2,), seed=1)
    plain, made = views_of(path, 1), views_of(path, 1, colour=colour)
    ids = np.arange(len(plain[0]))
    for view in (0, 1):
        want = device(torch.from_numpy(plain[view]), view=view, ids=ids, epoch=0).numpy()
        assert made[view].shape == want.shape == (len(ids), 1, *plain[view].shape[1:3])
        assert np.abs(made[view] - want).max() * 0.2 <= 1.5e-3
    loader = EvalLoader(path, size_px=24, channels=1)
    assert next(iter(loader)).views[0].shape[1:] == (24, 24, 1)
    loader.close()
    with pytest.raises(ConfigError, match="channels: 2"):
        EvalLoader(path, size_px=24, channels=2)


def test_a_colour_set_of_one_channel_is_the_set_of_its_lumas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures and masks alike: masks are found on what the network sees."""
    colour, grey = tmp_path / "colour", tmp_path / "grey"
    for split, kind, index in [(s, k, i) for s in ("train", "val") for k in "ab" for i in range(3)]:
        pixels = photo(100 * index + len(split) + ord(kind), height=90, width=120)
        save(pixels, colour / split / kind / f"{index}.png")
        save(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), grey / split / kind / f"{index}.png")
    one = read_manifest(write(colour, tmp_path / "one", "--channels", "1"))
    assert f"{NO_COLOUR}: 6 files" in capsys.readouterr().out
    two = read_manifest(write(grey, tmp_path / "two", "--channels", "1"))
    assert NO_COLOUR not in capsys.readouterr().out
    assert one.beton_sha256 == two.beton_sha256

    masks = tmp_path / "masks"
    cached = ["--data", str(colour), "--out", str(masks), "--channels", "1"]
    assert masks_main(cached) == 0
    three = read_manifest(
        write(colour, tmp_path / "three", "--channels", "1", "--masks", str(masks))
    )
    assert three.beton_sha256 == one.beton_sha256
    assert "the masks were made" not in capsys.readouterr().out


def test_auto_takes_one_channel_of_grey_sets_alone(
    grey_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(grey_folder, tmp_path / "grey", "--channels", "auto")
    assert "pictures have 1 channel, by 12 of them" in capsys.readouterr().out
    assert read_manifest(path).store["channels"] == 1
    path = write(image_folder(tmp_path / "set"), tmp_path / "colour", "--channels", "auto")
    assert "pictures have 3 channels" in capsys.readouterr().out
    assert "channels" not in read_manifest(path).store


def test_pictures_in_memory_have_a_luma_too() -> None:
    pixels = photo(3)
    got = decode_image(pixels, side_px=99, reading=Reading(channels=1))
    assert got.remarks == (NO_COLOUR,) and (got.rgb == got.rgb[..., :1]).all()
    assert np.abs(got.rgb[..., 0] - luma(pixels)).max() <= 0.5 + 0.02


def test_grey_jpegs_take_little_for_their_restart_markers() -> None:
    grey = np.asarray(Image.fromarray(photo(1, height=400, width=500)).convert("L"))
    noisy = grey // 2 + np.random.default_rng(0).integers(0, 60, grey.shape, np.uint8)
    plain = io.BytesIO()
    Image.fromarray(noisy).save(plain, "JPEG", quality=90)
    assert len(encode_jpeg(noisy, quality=90)) < 1.02 * len(plain.getvalue())


def test_passthrough_takes_grey_files_alone_for_one_channel(tmp_path: Path) -> None:
    data, pixels = tmp_path / "set", photo(5, height=64, width=96)
    for split in ("train", "val"):
        for kind in "ab":
            save(pixels, data / split / kind / "colour.jpg", quality=95)
            save(pixels[..., 1], data / split / kind / "grey.jpg", quality=95)
    path = write(data, tmp_path / "out", "--channels", "1", "--store", "passthrough")
    store = read_manifest(path).store
    assert store["passed_through"] == 2 and store["remarks"] == {NO_COLOUR: 2}
    assert store["reencoded"] == {"of three channels, where one is stored": 2}
    found = jpegs(path)
    assert found[1] == (data / "train/a/grey.jpg").read_bytes()
    for one in found:
        with Image.open(io.BytesIO(one)) as image:
            assert image.mode == "L"
