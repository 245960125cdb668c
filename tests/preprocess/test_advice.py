"""The advice follows from sizes, costs and memory, and says what it does not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from harl_fast.data.container.manifest import read_manifest
from preprocess import advice, beton
from preprocess.convert import ConversionSettings
from preprocess.masks import parse_spec
from preprocess.sources import folder_source
from tests.preprocess.support import image_folder

SIZES = {"jpg": 10e9, "yuv420": 50e9, "raw": 100e9}
COSTS = {"jpg": 1500.0, "yuv420": 700.0, "raw": 600.0}


@pytest.mark.parametrize(
    ("memory", "favoured"),
    [(200e9, "raw"), (101e9, "yuv420"), (63e9, "yuv420"), (61e9, "jpg"), (5e9, "jpg")],
)
def test_the_fastest_store_that_stays_in_memory_is_favoured(memory: float, favoured: str) -> None:
    assert advice.recommend(SIZES, COSTS, int(memory)).startswith(f"favoured here: {favoured};")


def test_the_gain_is_the_ratio_of_the_costs() -> None:
    assert "2.5 times as fast as jpg" in advice.recommend(SIZES, COSTS, 200 * 10**9)


def test_an_uncompressed_store_that_is_not_faster_is_not_favoured() -> None:
    slow = {"jpg": 500.0, "yuv420": 700.0, "raw": 600.0}
    assert "favoured here: jpg" in advice.recommend(SIZES, slow, 200 * 10**9)


def test_what_was_not_measured_is_not_favoured() -> None:
    assert "not measured" in advice.recommend(SIZES, {}, 200 * 10**9)
    assert "not measured" in advice.recommend(SIZES, {"jpg": 500.0}, 200 * 10**9)
    only_raw = advice.recommend(SIZES, {"jpg": 1500.0, "raw": 600.0}, 100 * 10**9)
    assert "favoured" not in only_raw and "not measured" in only_raw
    assert "no advice" in advice.recommend(SIZES, COSTS, None)


@pytest.mark.parametrize("store", ["jpg", "raw"])
def test_a_conversion_ends_with_sizes_and_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    data = image_folder(tmp_path / "set")
    arguments = ["--data", str(data), "--out", str(tmp_path / "out"), "--store", store]
    assert beton.main([*arguments, "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    facts = read_manifest(tmp_path / "out/train.beton").store
    each = facts["modes"][store]["bytes"] / 8
    assert f"store {store}: {each / 1e3:,.1f} kB per image" in shown
    assert f"6,000 images/s read {6000 * each / 1e9:,.2f} GB/s" in shown
    assert "not measured" in shown


def test_the_estimate_of_jpg_is_its_conversion(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "set")
    arguments = ["--data", str(data), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert beton.main(arguments) == 0
    facts = read_manifest(tmp_path / "out/train.beton").store
    split = folder_source(data).splits["train"]
    per_pixel = advice._jpg_bytes_per_pixel(
        split, ConversionSettings(512, 90, 64, parse_spec("full"))
    )
    assert per_pixel is not None  # all eight images are in the sample
    assert per_pixel * facts["pixels"] == pytest.approx(facts["modes"]["jpg"]["bytes"])


def test_costs_are_measured_through_the_loader(tmp_path: Path) -> None:
    source = folder_source(image_folder(tmp_path / "set", classes=2, train=20))
    costs = advice.measure(
        source, ConversionSettings(512, 90, 64, parse_spec("heuristic")), "train"
    )
    # More than a memory copy takes: it is a loader's, not a stub's. A second even if disturbed.
    assert set(costs) == {"jpg", "raw", "yuv420"}
    assert all(10 < cost < 1e6 for cost in costs.values())
