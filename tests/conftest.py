"""What all tests share: quiet threads, clean shared memory, and real data when there is some."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

# Before torch and numba are imported anywhere: on small machines more threads only wait for each
# other, and DeepSpeed's ranks are processes of their own. An outer setting wins.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

SHARED_MEMORY = Path("/dev/shm")
FIRST = (
    "tests/data/test_loader.py",
    "tests/launch/test_matrix.py",
    "tests/launch/test_parity.py",
    "tests/test_readme.py",
    "tests/launch/test_survival.py",
    "tests/launch/test_pretrain.py",
)
"""The longest files, so that no process is left with one at the end. The first compiles what the
last three use, while another process runs the two that need no decoder."""

# A first example may compile for seconds, and examples are slow to draw on a busy machine.
settings.register_profile("compiled", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("compiled")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those that are asked for by ``-m gpu``, before torch looks.

    Bits are compared that hold on a CPU only, and no test but those is made for a GPU.
    """
    if re.search(r"(?<!not )\bgpu\b", config.option.markexpr) is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of `FIRST` before all others."""
    place = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(FIRST)))


def _deepspeed_buffers() -> set[Path]:
    return {path for path in SHARED_MEMORY.glob("deepspeed_*") if path.owner() == _user()}


def _user() -> str:
    return Path(f"/proc/{os.getpid()}").owner()


@pytest.fixture(scope="session", autouse=True)
def _clean_shared_memory() -> Iterator[None]:
    """Remove the buffers that ranks of these tests left: DeepSpeed itself never does."""
    before = _deepspeed_buffers()
    yield
    for path in _deepspeed_buffers() - before:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Return a folder of real photos with train/ and val/ (or test/), if the caller has one."""
    folder = os.environ.get("HARL_FAST_DATA")
    if not folder:
        pytest.skip("HARL_FAST_DATA is not set: give it a folder with train/ and val/ images")
    if not (Path(folder) / "train").is_dir():
        pytest.fail(f"HARL_FAST_DATA={folder} has no train/ folder")
    return Path(folder)


# Containers: fixtures that several folders of tests read.
