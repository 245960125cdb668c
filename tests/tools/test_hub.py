"""`torch.hub.load` of an exported folder, on a machine without the training libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harl_fast.errors import CheckpointError
from harl_fast.tools import hub
from harl_fast.tools.export import export_encoder

ROOT = Path(__file__).parents[2]
HUB = """
import sys, torch
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ffcv", "numba", "deepspeed", "cv2", "timm", "psutil"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Nothing())
repository, entry, weights = sys.argv[1:]
model = torch.hub.load(repository, entry, source="local", weights=weights, endpoints=True)
found = model(torch.zeros(2, 3, 64, 64))
print({name: tuple(value.shape) for name, value in found.items()})
"""


def test_the_entry_points_are_there_without_docstrings() -> None:
    """Python -OO leaves them out."""
    command = [sys.executable, "-OO", "-c", "import hubconf; print(hubconf.harl_resnet50.__doc__)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Refuses another network than resnet50" in done.stdout


def test_an_entry_point_refuses_another_network(run: Path) -> None:
    with pytest.raises(CheckpointError, match="holds resnet18, not resnet50"):
        hub.load(run, arch="resnet50")


def test_torch_hub_gives_the_end_points_without_the_training_libraries(
    run: Path, tmp_path: Path
) -> None:
    export_encoder(run, out := tmp_path / "out", head=run / "eval" / "pets-logreg" / "result.json")
    command = [sys.executable, "-c", HUB, str(ROOT), "harl_resnet18", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert eval(done.stdout) == {
        "initial_conv": (2, 64, 32, 32),
        "initial_max_pool": (2, 64, 16, 16),
        "block_group1": (2, 64, 16, 16),
        "block_group2": (2, 128, 8, 8),
        "block_group3": (2, 256, 4, 4),
        "block_group4": (2, 512, 2, 2),
        "final_avg_pool": (2, 512),
        "default": (2, 512),
        "proj_head_input": (2, 512),
        "proj_head_output": (2, 16),
        "logits_sup": (2, 3),
    }
