"""The public interface: names that import, and the page-long example that uses them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import harl_fast
from tests.betons import plain_item, write_beton

ROOT = Path(__file__).parents[1]


def test_every_public_name_imports() -> None:
    stub = ast.parse((ROOT / "harl_fast" / "__init__.pyi").read_text(encoding="utf-8"))
    names = [
        alias.asname
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert len(names) > 10 and set(names) <= set(dir(harl_fast))
    for name in names:
        assert getattr(harl_fast, str(name)) is not None


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = (
        "import sys, harl_fast; print([m for m in ('torch', 'ffcv', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_minimal_example_trains_and_leaves_an_encoder(tmp_path: Path) -> None:
    container = write_beton(tmp_path / "train.beton", plain_item, count=130)
    out = tmp_path / "encoder.safetensors"
    command = [sys.executable, ROOT / "examples" / "minimal.py", container, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch") == 2, done.stdout
    model = harl_fast.ModelConfig(arch="resnet18", width=0.5, last_stride=1)
    encoder = harl_fast.build_backbone(model)
    encoder.load_state_dict(load_file(out))
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 256, 4, 4)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--epochs", "0", "argument --epochs: 0 is not from 1 to "),
        ("--epochs", "1", "error: train.json is missing"),
        ("--out", "/proc/x.safetensors", "error: --out /proc/x.safetensors cannot be written"),
        ("--out", "train.beton", "error: --out train.beton belongs to "),
        ("--out", "x.txt", "end its name in .safetensors"),
        ("--out", "x.safetensors", "error: --out x.safetensors is not a regular file"),
    ],
)
def test_the_minimal_example_refuses_before_it_trains(
    option: str, value: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "train.beton").touch()
    (tmp_path / "x.safetensors").mkdir()
    command = [sys.executable, ROOT / "examples" / "minimal.py", "train.beton", option, value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
