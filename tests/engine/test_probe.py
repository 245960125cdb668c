"""Online probes: what they find is right, of the run's own images, and ends when it is asked to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harl_fast.data.container.manifest import read_manifest
from harl_fast.engine.machine import Machine
from harl_fast.engine.monitor.probe import Probe, ProbeStopped, _Plain, averaged_statistics
from harl_fast.engine.views import build_loader
from harl_fast.errors import DataError
from tests.betons import plain_item, write_beton
from tests.engine.support import engine_config, prepare, tiny_config
from tests.engine.test_watch import records


def test_a_probe_learns_what_can_be_seen(tmp_path: Path, machine: Machine) -> None:
    """Two classes, bright and dark, and an encoder that gives the mean colour."""

    def item(index: int) -> Any:
        image, mask, _ = plain_item(index)
        return np.full_like(image, 200 if index % 2 else 40), mask, index % 2

    path = write_beton(tmp_path / "train.beton", item, count=60)
    config = tiny_config(tmp_path, overrides=["log.probe_images=30"])
    probe = Probe(path, read_manifest(path), config, device=torch.device("cpu"), threads=1)
    assert probe.held_out
    (*_, train), (*_, test) = probe._sets
    assert len(train) == 30 and len(test) == 15 and not set(train) & set(test)
    encoder = torch.nn.Identity().train()
    found = probe(encoder)
    assert found["probe_knn"] == found["probe_linear"] == 100.0 and encoder.training

    write_beton(tmp_path / "val.beton", item, count=20)
    beside = Probe(path, read_manifest(path), config, device=torch.device("cpu"), threads=1)
    assert not beside.held_out and [len(ids) for *_, ids in beside._sets] == [30, 15]
    other = tmp_path / "other"
    other.mkdir()
    alike = write_beton(other / "train.beton", lambda i: (*plain_item(i)[:2], 0), count=20)
    with pytest.raises(DataError, match=r"has 1 classes.*log.probe_epochs=0"):
        Probe(alike, read_manifest(alike), config, device=torch.device("cpu"), threads=1)


def test_a_probe_uses_the_backbone_as_written_not_as_compiled() -> None:
    """A compiled backbone would be compiled again for the probe's shapes and mode."""

    def compiled(*args: Any) -> None:
        raise AssertionError("the compiled form was called")

    backbone = torch.nn.Conv2d(3, 2, 1)
    backbone._compiled_call_impl = compiled  # what nn.Module.compile() sets
    assert _Plain(backbone)(torch.zeros(1, 3, 4, 4)).shape == (1, 2, 4, 4)
    with pytest.raises(AssertionError, match="compiled form"):
        backbone(torch.zeros(1, 3, 4, 4))


def test_statistics_are_averaged_for_the_probe_and_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def doubled(tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor.mul_(2.0)

    monkeypatch.setattr("harl_fast.engine.monitor.probe.average_over_ranks", doubled)
    layer = torch.nn.BatchNorm2d(3)
    layer.running_mean = torch.tensor([0.1, 0.2, 0.3])
    with averaged_statistics(layer):
        assert torch.equal(layer.running_mean, torch.tensor([0.2, 0.4, 0.6]))
    assert torch.equal(layer.running_mean, torch.tensor([0.1, 0.2, 0.3]))


def test_a_stop_ends_a_probe_at_once(tmp_path: Path, machine: Machine, data: Path) -> None:
    config, train = tiny_config(tmp_path, overrides=["log.probe_images=40"]), data / "train.beton"
    probe = Probe(train, read_manifest(train), config, device=torch.device("cpu"), threads=1)
    encoder = torch.nn.Identity().train()
    with pytest.raises(ProbeStopped):
        probe(encoder, stopping=lambda: True)
    assert encoder.training


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_container_that_is_replaced_ends_probes_and_sheets(
    tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    """The run has the old one open, and its curve must not go on with other images."""
    for name in ("train", "val"):
        write_beton(tmp_path / f"{name}.beton", plain_item, count=100)
    loader = build_loader(tiny_config(tmp_path), engine_config(), machine, data=tmp_path)
    drawn: list[Path] = []
    config = ("log.probe_epochs=1", "log.probe_images=40", "log.sheet_epochs=1")
    run = prepare(
        machine,
        tmp_path / "run",
        loader=loader,
        config=config,
        sheet=lambda beton, config, out, *, epoch: drawn.append(out),
    )
    with run.sinks:
        run.monitor.epoch(1)
        (tmp_path / f"{split}.beton").unlink()  # `make beton` renames
        write_beton(tmp_path / f"{split}.beton", plain_item, count=60)
        run.monitor.epoch(2)
        run.monitor.epoch(3)
    told = [line for line in capsys.readouterr().err.splitlines() if "no more online" in line]
    assert len(told) == 1 and f"{split}.beton was replaced by another container" in told[0]
    assert [record["epoch"] for record in records(tmp_path / "run")] == [1] and len(drawn) == 1
