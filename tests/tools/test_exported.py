"""Exported folders are files that a user may have received."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harl_fast import export_encoder
from harl_fast.engine.networks import load_pretrained
from harl_fast.errors import CheckpointError, OutputError
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


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.zeros(3 * 512), torch.zeros(3)),
        (torch.zeros(3, 512), torch.zeros(4)),
        (torch.zeros(3, 512), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, 64), torch.zeros(3)),
        (torch.zeros(3, 512, dtype=torch.complex64), torch.zeros(3)),
    ],
)
def test_an_exported_classifier_that_is_no_layer_is_refused(
    run: Path, tmp_path: Path, weight: torch.Tensor, bias: torch.Tensor
) -> None:
    export_encoder(run, out := tmp_path / "out")
    path = out / "model.safetensors"
    save_file(load_file(path) | {"fc.weight": weight, "fc.bias": bias}, path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*(classifier|complex64)"):
        load_pretrained(out)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.float8_e4m3fn])
def test_weights_that_are_no_real_numbers_are_refused(
    run: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    export_encoder(run, out := tmp_path / "out")
    path = out / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"conv1.weight": tensors["conv1.weight"].to(dtype)}, path)
    with pytest.raises(CheckpointError, match=rf"conv1\.weight'? holds {dtype}"):
        load_pretrained(out)


def test_what_a_killed_export_of_the_same_number_left_is_replaced(
    run: Path, tmp_path: Path
) -> None:
    """In containers processes count from 1 each time."""
    (tmp_path / f".out.{os.getpid()}.tmp" / "half").mkdir(parents=True)
    export_encoder(run, out := tmp_path / "out")
    assert load_pretrained(out) and [each.name for each in tmp_path.iterdir()] == ["out"]


def test_the_current_folder_is_not_replaced_by_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="is the folder that this runs in"):
        export_encoder(tmp_path / "run", ".")


@pytest.mark.parametrize(("to", "name"), [("onnx", "model.onnx"), ("torchvision", "model.pth")])
def test_a_file_that_may_not_become_so_large_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, name: str
) -> None:
    if to == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnx")

    class Program:
        def save(self, path: Path, **options: object) -> None:
            large(path)

    def large(path: Path, *_: object) -> None:
        with open(path, "wb") as stream:
            stream.write(bytes(1 << 16))
            stream.flush()

    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: Program())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            export_encoder(run, tmp_path / "out", to=to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "out" / name)
    assert not list(tmp_path.iterdir())
