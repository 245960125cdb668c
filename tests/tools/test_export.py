"""Encoders that leave: each form is read by the library that it is for."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from harl_fast.engine.initial import open_initial
from harl_fast.engine.networks import load_pretrained
from harl_fast.errors import ConfigError, HarlError, OutputError
from harl_fast.textfile import read_yaml
from harl_fast.tools import export, forms, onnx_run
from harl_fast.tools.export import export_encoder
from tests.engine.saved import checkpoint
from tests.tools.support import CLASSES, result_of


def images(count: int = 2, *, size_px: int = 64) -> Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(3))


def features(run: Path, x: Tensor) -> Tensor:
    """Return the pooled features of images in [0, 1], normalised by ImageNet's figures."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.inference_mode():
        pooled: Tensor = load_pretrained(run).backbone((x - mean) / std).mean((2, 3))
    return pooled


def logits(run: Path, pooled: Tensor) -> Tensor:
    head = load_file(run / "eval" / "pets-logreg" / "head.safetensors")
    return pooled @ head["weight"].T + head["bias"]


def normalised(x: Tensor) -> Tensor:
    return torchvision.transforms.functional.normalize(
        x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )


@pytest.mark.parametrize("head", [False, True])
def test_torchvision_loads_the_export_strictly(run: Path, tmp_path: Path, head: bool) -> None:
    given = run / "eval" / "pets-logreg" / "result.json" if head else None
    told = export_encoder(run, tmp_path / "out", to="torchvision", head=given)
    assert "strictly" in told
    model = torchvision.models.resnet18(num_classes=3)
    expected = features(run, images())
    if head:
        expected = logits(run, expected)
    else:
        model.fc = nn.Identity()
    for content in (
        torch.load(tmp_path / "out" / "model.pth", weights_only=True),
        load_file(tmp_path / "out" / "model.safetensors"),
    ):
        model.load_state_dict(content, strict=True)
        with torch.inference_mode():
            found = model.eval()(normalised(images()))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as stream:
        assert json.loads(stream.metadata()["std"]) == [0.229, 0.224, 0.225]


def test_mmdetection_reads_the_file(run: Path, tmp_path: Path) -> None:
    """Its `init_cfg` takes a "state_dict" within if there is one, and drops ``module.``."""
    export_encoder(run, tmp_path / "out", to="torchvision")
    content = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    content = content.get("state_dict", content)
    names = {re.sub(r"^module\.", "", name) for name in content}
    expected = set(torchvision.models.resnet18().state_dict()) - {"fc.weight", "fc.bias"}
    assert names == expected  # of its ResNet too: conv1, bn1, layer1.0.downsample.0, ...


@pytest.mark.parametrize("head", [False, True])
def test_timm_loads_the_folder_with_equal_bits(run: Path, tmp_path: Path, head: bool) -> None:
    timm = pytest.importorskip("timm")
    out = tmp_path / "out"
    given = run / "eval" / "pets-logreg" / "result.json" if head else None
    assert "equal bits" in export_encoder(run, out, head=given)
    x = normalised(images())
    with torch.inference_mode():
        expected = load_pretrained(run).backbone(x)
        whole = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        assert torch.equal(whole.forward_features(x), expected)
        ten = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=10).eval()
        assert torch.equal(ten.forward_features(x), expected) and ten(x).shape == (2, 10)
        maps = timm.create_model(f"local-dir:{out}", pretrained=True, features_only=True).eval()
        assert torch.equal(maps(x)[-1], expected)
        bare = timm.create_model(f"local-dir:{out}").eval()
        assert not torch.equal(bare.forward_features(x), expected)  # what the card warns of
        if head:
            torch.testing.assert_close(
                whole(x), logits(run, features(run, images())), rtol=1e-4, atol=1e-4
            )
    card = (out / "README.md").read_text()
    assert "pretrained=True` is passed" in card and "81.2 | 70.0 to 90.0" in card
    assert "pets (own split)" in card
    config = timm.data.resolve_data_config({}, model=whole)
    assert config["crop_pct"] == 0.875 and tuple(config["input_size"]) == (3, 224, 224)
    if head:
        assert json.loads((out / "config.json").read_text())["label_names"] == CLASSES


def test_an_exported_folder_is_a_checkpoint_again(run: Path, tmp_path: Path) -> None:
    export_encoder(run, out := tmp_path / "out")
    first, again = load_pretrained(run), load_pretrained(out)
    assert again.weights_sha256 == first.weights_sha256
    assert (again.model, again.mean, again.size_px) == (first.model, first.mean, first.size_px)
    assert again.projector is not None and first.projector is not None
    rows = torch.randn(3, 512)
    assert torch.equal(again.projector(rows), first.projector(rows))
    assert "step 3" in again.receipt.source and str(out) in again.receipt.source
    assert load_pretrained(out / "model.safetensors").weights_sha256 == first.weights_sha256
    (note,) = open_initial(out, first.model).notes
    assert "120 of the 120 tensors" in note
    export_encoder(out, tmp_path / "twice")
    assert load_pretrained(tmp_path / "twice").weights_sha256 == first.weights_sha256


def test_an_export_with_a_head_states_the_inputs_that_it_was_judged_on(
    run: Path, tmp_path: Path
) -> None:
    """Others are refused; what the result lacks is the run's."""
    seen = {"size_px": 48, "crop": 0.9, "mean": [0.0, 0.0, 0.0], "std": [1.0, 0.5, 1.0]}
    sha256 = load_pretrained(run).weights_sha256
    given = result_of(tmp_path / "full", weights_sha256=sha256, seen=seen)
    lacking = result_of(tmp_path / "lacking", weights_sha256=sha256, seen={**seen, "mean": []})
    imagenet = [0.485, 0.456, 0.406]
    for number, (head, options, expected) in enumerate(
        [
            (given, {}, (48, 0.9, [0.0] * 3, [1.0, 0.5, 1.0])),
            (given, {"size_px": 48, "std": [1, 0.5, 1]}, (48, 0.9, [0.0] * 3, [1.0, 0.5, 1.0])),
            (lacking, {}, (48, 0.9, imagenet, [1.0, 0.5, 1.0])),
            (None, {}, (224, 0.875, imagenet, [0.229, 0.224, 0.225])),
            (None, {"size_px": 32}, (32, 1.0, imagenet, [0.229, 0.224, 0.225])),
        ]
    ):
        export_encoder(run, out := tmp_path / f"out{number}", head=head, **options)
        stated = json.loads((out / "config.json").read_text())["pretrained_cfg"]
        size_px, crop, mean, std = expected
        assert stated["input_size"] == [3, size_px, size_px] and stated["crop_pct"] == crop
        assert (stated["mean"], stated["std"]) == (mean, std)
        card = (out / "README.md").read_text()
        assert f"mean {mean} and std {std}. For evaluation the central square of {crop} of" in card
        assert f"with antialiasing to {size_px} px." in card
        again = load_pretrained(out)
        assert (again.size_px, again.crop) == (size_px, crop)
        export_encoder(out, tmp_path / f"again{number}")  # what was stated stays
        assert load_pretrained(tmp_path / f"again{number}").crop == crop
        assert load_pretrained(out, size_px=96).crop == 0.875  # which is of another size
    for options, told in (
        (
            {"size_px": 64},
            r"with --size-px 48, which 64 is not: .*\(`make lineval ARGS=\"--size-px",
        ),
        ({"mean": [0.1, 0, 0]}, r"with --mean 0,0,0, which 0\.1,0,0 is not: .* leave --mean out"),
        ({"std": [1, 1, 1]}, r"with --std 1,0\.5,1, which 1,1,1 is not: "),
    ):
        for to in ("folder", "torchvision"):
            with pytest.raises(ConfigError, match=f"HEAD .* was judged {told}"):
                export_encoder(run, tmp_path / "other", to=to, head=given, **options)
    assert not (tmp_path / "other").exists()


def test_torchvisions_files_state_the_inputs_and_are_read_with_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = {"size_px": 48, "crop": 0.9, "mean": [0.0, 0.0, 0.0], "std": [1.0, 0.5, 1.0]}
    sha256 = load_pretrained(run).weights_sha256
    head = result_of(tmp_path / "result", weights_sha256=sha256, seen=seen)
    export_encoder(run, tmp_path / "out", to="torchvision", head=head)
    file = tmp_path / "out" / "model.safetensors"
    with safe_open(file, framework="pt") as stream:
        assert {key: json.loads(stream.metadata()[key]) for key in seen} == seen
    capsys.readouterr()
    again = load_pretrained(file)
    assert (again.size_px, again.crop, again.std) == (48, 0.9, (1.0, 0.5, 1.0))
    assert "std 1, 0.5, 1, 48 px\n" in capsys.readouterr().err
    assert load_pretrained(file, size_px=96).crop == 0.875


@pytest.mark.slow  # torch.onnx traces for 10 s
@pytest.mark.parametrize("head", [False, True])
def test_onnxruntime_takes_pixels_in_any_batch(run: Path, tmp_path: Path, head: bool) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    given = run / "eval" / "pets-logreg" / "result.json" if head else None
    out = tmp_path / os.fsdecode(b"out\xff")  # which onnxruntime does not open
    size_px = 224 if head else 64
    told = export_encoder(run, out, to="onnx", head=given, size_px=size_px)
    assert "onnxruntime" in told and "within" in told
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.onnx"]
    about = json.loads((out / "model.json").read_text())
    assert (about["size_px"], about["crop"]) == (size_px, 0.875)
    assert about["input"] == "RGB in [0, 1], normalised inside"
    session = runtime.InferenceSession((out / "model.onnx").read_bytes())
    for count in (1, 3, 5):
        pixels = images(count, size_px=size_px)
        found = session.run(None, {"images": pixels.numpy()})
        expected = features(run, pixels)
        wanted = [expected, logits(run, expected)] if head else [expected]
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-4 * other.abs().max())


@pytest.mark.slow
def test_the_onnx_of_one_channel_says_so(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    checkpoint(tmp_path / "run", arch="resnet18", width=0.25, stem="small", in_channels=1)
    grey: dict[str, Any] = {"mean": [0.5], "std": [0.25], "size_px": 32}
    export_encoder(tmp_path / "run", tmp_path / "out", to="onnx", **grey)
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["input"] == "luma, one channel, in [0, 1], normalised inside"
    assert {key: about[key] for key in ("crop", *grey)} == {"crop": 1.0, **grey}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os.abort()", "not compared: SIGABRT"),
        ("import time; time.sleep(60)", "not compared: .* no answer after 3 s"),
        ("raise OSError(7)", None),
    ],
)
def test_a_runtime_that_crashes_ends_no_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str | None
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_run, "_PROGRAM", [sys.executable, "-c", code])
    monkeypatch.setattr(onnx_run, "_PATIENCE_S", 3.0)
    if told:
        assert re.search(told, export_encoder(run, tmp_path / "out", to="onnx", size_px=64))
        assert (tmp_path / "out" / "model.onnx").exists()
    else:
        with pytest.raises(OutputError, match=r"refuses the export: OSError: 7"):
            export_encoder(run, tmp_path / "out", to="onnx", size_px=64)
        assert list(tmp_path.iterdir()) == []


def converter(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename as detectron2's tools/convert-torchvision-to-d2.py does."""
    renamed = {}
    for name, tensor in tensors.items():
        key = name if "layer" in name else f"stem.{name}"
        for number in (1, 2, 3, 4):
            key = key.replace(f"layer{number}", f"res{number + 1}")
        for number in (1, 2, 3):
            key = key.replace(f"bn{number}", f"conv{number}.norm")
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_detectron2_gets_its_names_and_settings(tmp_path: Path, arch: str) -> None:
    _, tensors = checkpoint(tmp_path / "run", arch=arch)
    export_encoder(tmp_path / "run", tmp_path / "out", to="detectron2")
    content = pickle.loads((tmp_path / "out" / "model.pkl").read_bytes())
    assert content["matching_heuristics"] is True
    expected = converter(tensors)
    assert content["model"].keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(content["model"][name], tensor.numpy()), name
    tree = read_yaml(tmp_path / "out" / "model.yaml")
    assert tree["INPUT"]["FORMAT"] == "RGB"
    resnets = tree["MODEL"]["RESNETS"]
    assert resnets["STRIDE_IN_1X1"] is False and resnets["DEPTH"] == int(arch[6:])
    assert resnets.get("RES2_OUT_CHANNELS") == (64 if arch == "resnet18" else None)
    assert tree["MODEL"]["PIXEL_MEAN"] == pytest.approx([123.675, 116.28, 103.53])
    assert tree["MODEL"]["PIXEL_STD"] == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize("arch", ["timm:resnet50d", "timm:convnext_atto"])
def test_networks_of_timm_go_back_to_timm(tmp_path: Path, arch: str) -> None:
    timm = pytest.importorskip("timm")
    checkpoint(tmp_path / "run", arch=arch)
    export_encoder(tmp_path / "run", out := tmp_path / "out")
    x = normalised(images())
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(theirs.forward_features(x), load_pretrained(out).backbone(x))
    with pytest.raises(ConfigError, match=r"model\.arch timm:.* does not exist in torchvision"):
        export_encoder(tmp_path / "run", tmp_path / "other", to="torchvision")


@pytest.mark.parametrize(
    ("key", "value"),
    [("stem", "small"), ("width", 0.5), ("last_stride", 1), ("in_channels", 1)],
)
@pytest.mark.parametrize("to", ["torchvision", "detectron2"])
def test_networks_that_a_library_lacks_are_refused_by_key(
    tmp_path: Path, key: str, value: Any, to: str
) -> None:
    mean = {"mean": [0.5], "std": [0.5]} if key == "in_channels" else {}
    checkpoint(tmp_path / "run", **{"arch": "resnet18", key: value})
    with pytest.raises(ConfigError, match=rf"model\.{key} {value} does not exist in {to}.*folder"):
        export_encoder(tmp_path / "run", tmp_path / "out", to=to, **mean)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_of_what_timm_lacks_serves_the_hub_and_stops_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    _, tensors = checkpoint(tmp_path / "run", arch="resnet18", width=0.5, stem="small")
    told = export_encoder(tmp_path / "run", out := tmp_path / "out")
    assert "timm has no such network" in told
    assert torch.equal(load_pretrained(out).backbone.conv1.weight, tensors["conv1.weight"])
    with pytest.raises(RuntimeError, match="harl_fast_resnet18"):
        timm.create_model(f"local-dir:{out}", pretrained=True)
    assert "timm and torchvision have no such network" in (out / "README.md").read_text()


def test_what_cannot_be_exported_leaves_nothing(run: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").touch()
    with pytest.raises(OutputError, match="is not empty"):
        export_encoder(run, full)
    with pytest.raises(ConfigError, match=r"is none of folder.*did you mean 'onnx'"):
        export_encoder(run, tmp_path / "out", to="onx")
    other = result_of(tmp_path / "other", weights_sha256="2" * 64)
    with pytest.raises(ConfigError, match=r"not on those of .*step-00000003\.safetensors"):
        export_encoder(run, tmp_path / "out", head=other)
    fresh = result_of(tmp_path / "fresh", weights_sha256="2" * 64, receipt="0/62 tensors")
    with pytest.raises(ConfigError, match="is of a freshly initialised encoder"):
        export_encoder(run, tmp_path / "out", head=fresh)
    narrow = result_of(
        tmp_path / "narrow", weights_sha256=load_pretrained(run).weights_sha256, dim=64
    )
    with pytest.raises(ConfigError, match="takes 64 features, the encoder has 512"):
        export_encoder(run, tmp_path / "out", head=narrow)
    with pytest.raises(HarlError, match=r"result\.json does not exist"):
        export_encoder(run, tmp_path / "out", head=tmp_path / "result.json")
    assert not (tmp_path / "out").exists()


def test_an_export_that_reads_back_differently_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    named = forms._named

    def damaged(*args: Any) -> dict[str, Tensor]:
        return {name: tensor * 2 for name, tensor in named(*args).items()}

    monkeypatch.setattr(forms, "_named", damaged)
    for to in ("folder", "torchvision"):
        with pytest.raises(OutputError, match=r"another network|something else"):
            export_encoder(run, tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_an_export_by_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError) as caught:
        export_encoder(run, tmp_path / "out")
    assert caught.value.errno == 28 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnxscript", "timm"])
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    if package == "timm":
        assert "not installed" in export_encoder(run, tmp_path / "out")
    else:
        with pytest.raises(ConfigError, match=r"needs the package onnxscript.*'\.\[export\]'"):
            export_encoder(run, tmp_path / "out", to="onnx")


def test_the_program_exports(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ["--ckpt", str(run), "--out", str(out), "--to", "torchvision", "--size-px", "64"]
    assert export.main(given) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: torchvision of resnet18")
    assert "120/120 tensors" in printed.err
