"""Runs, probes, evaluation, previews and the doctor take a set of containers for a container."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harl_fast import doctor
from harl_fast.data.container.index import manifest_of
from harl_fast.data.container.manifest import manifest_path, read_manifest
from harl_fast.engine.machine import Machine
from harl_fast.engine.monitor.probe import Probe
from harl_fast.engine.resume import check_data
from harl_fast.engine.views import build_loader
from harl_fast.errors import ConfigError, DataError
from harl_fast.eval.protocol import Evaluator
from preprocess import preview
from preprocess.masks.gallery import from_container
from tests.betons import plain_item, write_beton
from tests.data.support import by_sample
from tests.engine.support import engine_config, tiny_config
from tests.sets import split_beton

MISSING = "00002-of-00005.beton"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train.beton and val.beton."""
    folder = tmp_path_factory.mktemp("single")
    for split, count in (("train", 60), ("val", 20)):
        write_beton(folder / f"{split}.beton", plain_item, count=count)
    return folder


@pytest.fixture
def several(single: Path, tmp_path: Path) -> Path:
    """Return a folder with the same samples as sets."""
    for split in ("train", "val"):
        split_beton(single / f"{split}.beton", tmp_path / "sets", shards=5)
    return tmp_path / "sets"


def test_a_run_reads_a_set_and_knows_it_again(
    machine: Machine, single: Path, several: Path, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path)
    loaders = [build_loader(config, engine_config(), machine, data=d) for d in (single, several)]
    assert by_sample(loaders[0]) == by_sample(loaders[1])
    known = loaders[1].manifest.beton_sha256
    check_data(
        known, build_loader(config, engine_config(), machine, data=several).manifest.beton_sha256
    )
    (several / "train" / MISSING).unlink()
    with pytest.raises(DataError, match=rf"1 of 5 shards .*{MISSING} is missing"):
        build_loader(config, engine_config(), machine, data=several)
    skipping = tiny_config(tmp_path, overrides=["data.skip_broken=true"])
    rest = build_loader(skipping, engine_config(), machine, data=several)
    assert rest.manifest.count == 48
    with pytest.raises(ConfigError, match="other shards of it are left out"):
        check_data(known, rest.manifest.beton_sha256)


def test_the_probe_takes_sets(single: Path, several: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, overrides=["log.probe_images=30"])
    paths = (single / "train.beton", several / "train")
    cpu = torch.device("cpu")
    probes = [Probe(path, read_manifest(path), config, device=cpu, threads=1) for path in paths]
    assert not any(probe.held_out for probe in probes)
    results = [probe(torch.nn.Identity()) for probe in probes]
    for name in ("probe_knn", "probe_linear"):
        assert results[0][name] == results[1][name]
    (several / "train" / MISSING).unlink()
    skipping = tiny_config(tmp_path, overrides=["log.probe_images=30", "data.skip_broken=true"])
    manifest = manifest_of(several / "train", skip_broken=True)
    probe = Probe(several / "train", manifest, skipping, device=cpu, threads=1)
    assert probe(torch.nn.Identity())["probe_s"] > 0
    assert max(probe._sets[0][2]) == 47


def test_evaluation_takes_sets(single: Path, several: Path) -> None:
    settings = {"size_px": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3, "device": torch.device("cpu")}
    one, other = (Evaluator(folder, **settings) for folder in (single, several))
    assert one.classes == other.classes and one.chance() == other.chance()
    for split in ("train", "val"):
        assert by_sample(one._loaders[split]) == by_sample(other._loaders[split])
        assert other.data_facts()[split] == read_manifest(several / split).beton_sha256


def test_pictures_of_a_set(single: Path, several: Path, tmp_path: Path) -> None:
    assert preview.fitting(several / "train") == preview.fitting(single / "train.beton")
    shown = [
        list(from_container(path, truth=None, most=9))
        for path in (single / "train.beton", several / "train")
    ]
    for one, other in zip(*shown, strict=True):
        assert one.name == other.name and one.figure == other.figure
        for tile in one.tiles:
            assert np.array_equal(one.tiles[tile], other.tiles[tile])
    out = tmp_path / "sheet.png"
    in_its_place = several / "train.beton"  # what `make preview` names
    assert preview.main([str(in_its_place), "--out", str(out), "--count", "2", "--stats"]) == 0
    assert out.exists() and out.with_name("sheet_stats.png").exists()
    masks = tmp_path / "masks.png"
    assert preview.main([str(several / "train"), "--masks", "--out", str(masks)]) == 0
    assert masks.exists()


def test_the_doctor_counts_the_bytes_of_sets(several: Path) -> None:
    assert str(several) in doctor.memory(several).value and doctor.memory(several).state != "fail"
    manifest_path(several / "train").unlink()
    for path in several.glob("*/*.beton"):
        path.unlink()
    assert doctor.memory(several).state == "fail"
