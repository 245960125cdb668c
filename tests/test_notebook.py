"""The notebook runs from top to bottom, and is stored without what it printed."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from harl_fast.tools.export import export_encoder
from tests.betons import write_beton

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "finetuning.ipynb"
LIMIT_S = 180
"""For all cells together."""


def code_cells() -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_stored_without_outputs() -> None:
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells())


def two_kinds(index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return a plain light or dark picture: even random features tell them apart."""
    noise = np.random.default_rng(index).integers(0, 60, (72, 80, 3))
    return (noise + 150 * (index % 2)).astype(np.uint8), np.ones((64, 64), bool), index % 2


@pytest.mark.slow
def test_it_trains_a_head_and_shows_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    torch.manual_seed(0)
    weights = {k: v for k, v in resnet18().state_dict().items() if not k.startswith("fc.")}
    save_file(weights, tmp_path / "resnet18.safetensors")
    export_encoder(tmp_path / "resnet18.safetensors", tmp_path / "encoder", size_px=64)
    for split, count in (("train", 64), ("val", 32)):
        write_beton(tmp_path / f"{split}.beton", two_kinds, count=count)
    monkeypatch.setenv("HARL_FAST_ENCODER", str(tmp_path / "encoder"))
    monkeypatch.setenv("HARL_FAST_CONTAINERS", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=LIMIT_S, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    begun = time.monotonic()
    client.execute()
    assert time.monotonic() - begun < LIMIT_S
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    printed = "".join(out.text for out in outputs if out.get("name") == "stdout")
    for name in ("initial_conv", "block_group4", "final_avg_pool", "proj_head_input"):
        assert name in printed
    assert float(printed.partition("top-1 ")[2].split()[0]) > 90
    assert sum("image/png" in out.get("data", ()) for out in outputs) == 2
