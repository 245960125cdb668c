"""The one-rank process group that the engine's tests share, and a small container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harl_fast.engine.machine import Machine, this_machine
from tests.betons import plain_item, write_beton


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """Start DeepSpeed on one rank in this process."""
    from harl_fast.engine import deepspeed as ds

    before = dict(os.environ)
    here = this_machine()
    ds.start(here, timeout_minutes=1)
    yield here
    ds.stop()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose train.beton holds a hundred pictures."""
    folder = tmp_path_factory.mktemp("data")
    write_beton(folder / "train.beton", plain_item, count=100)
    return folder


@pytest.fixture(scope="session")
def run(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run; tests change copies of it."""
    folder = tmp_path_factory.mktemp("finished")
    from tests.engine.runs import train

    train(folder / "run", machine, config=folder)
    return folder / "run"


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of labelled containers of train and val; tests leave them as they are."""
    from tests.engine.tuning import write_sets

    return write_sets(tmp_path_factory.mktemp("sets") / "colours")


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run."""
    from tests.engine.runs import copy

    return copy(run, tmp_path)
