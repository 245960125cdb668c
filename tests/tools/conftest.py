"""Fixtures of several tools' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from harl_fast.engine.networks import load_pretrained
from tests.engine.saved import checkpoint
from tests.tools.support import result_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    checkpoint(folder, arch="resnet18", heads=True, projector_hidden=64, projector_out=16)
    result_of(folder, weights_sha256=load_pretrained(folder).weights_sha256)
    return folder
