"""Exported folders are files that a user may have received."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harl_fast import export_encoder
from harl_fast.engine.networks import load_pretrained
from harl_fast.errors import CheckpointError
from tests.engine.saved import checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    checkpoint(folder, arch="resnet18", heads=True, projector_hidden=64, projector_out=16)
    return folder


@pytest.mark.parametrize(
    "changed",
    [
        {"std": [0, 0, 0]},
        {"mean": "grey"},
        {"input_size": [3]},
        {"input_size": [3, 0, 0]},
        {"input_size": [3, 10**12, 10**12]},
        {"input_size": "large"},
    ],
)
def test_an_exported_folder_with_impossible_values_is_refused(
    run: Path, tmp_path: Path, changed: dict[str, object]
) -> None:
    export_encoder(run, out := tmp_path / "out")
    path = out / "config.json"
    tree = json.loads(path.read_text())
    tree["pretrained_cfg"] |= changed
    path.write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="is no configuration of an exported encoder"):
        load_pretrained(out)
