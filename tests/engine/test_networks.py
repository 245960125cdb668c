"""Encoders that come from, and go to, other programs."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from harl_fast.config import ModelConfig
from harl_fast.engine.checkpoint.format import write_checkpoint
from harl_fast.engine.initial import EncoderFile, open_initial
from harl_fast.engine.machine import Machine
from harl_fast.engine.networks import load_encoder, load_pretrained
from harl_fast.engine.views import view_geometry
from harl_fast.errors import CheckpointError, ConfigError, OutputError
from harl_fast.runfiles import check_apart
from harl_fast.tools.export import export_encoder
from tests.engine.runs import ask, start
from tests.engine.saved import checkpoint
from tests.engine.support import advance, stepper, tiny_file, weights

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
RESNET18 = ModelConfig(arch="resnet18")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"std": [0, 0, 0]}, r"std \[0, 0, 0\]: give a list of numbers from 0.01 to 1"),
        ({"mean": [123.7, 116.3, 103.5]}, r"mean \[123.7, .*from 0 to 1, one per channel"),
        ({"mean": [float("nan")] * 3}, "mean .*nan"),
        ({"mean": []}, r"mean \[\]: give"),
        ({"mean": 0.5}, "mean 0.5: give"),
        ({"mean": [0.5]}, "--mean has 1 values"),
        ({"size_px": 0}, "size_px 0: give a whole number"),
        ({"size_px": 32.5}, "size_px 32.5: give a whole number"),
    ],
)
def test_inputs_that_the_command_line_refuses_are_refused(
    run: Path, inputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_pretrained(run, **inputs)


def test_inputs_may_be_arrays(run: Path) -> None:
    found = load_pretrained(run, mean=np.full(3, 0.5), std=torch.full((3,), 0.25))
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("arch", ["timm:resnet50d", "timm:convnext_tiny"])
def test_a_checkpoint_of_a_timm_network_loads(tmp_path: Path, arch: str) -> None:
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    _, tensors = checkpoint(tmp_path / "run", arch=arch)
    encoder, _ = load_encoder(tmp_path / "run")
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    theirs = timm.create_model(arch.removeprefix("timm:"), pretrained=False)
    full = tmp_path / "full.safetensors"
    save_file(theirs.state_dict(), full)
    opened = open_initial(full, ModelConfig(arch=arch))
    assert isinstance(opened, EncoderFile) and "left over: " in opened.notes[0]


@pytest.mark.parametrize("arch", ["timm:convnext_atto", "timm:skresnet18"])
def test_a_timm_network_steps_alike_in_whole_tensors_and_in_shards(
    tmp_path: Path, machine: Machine, arch: str
) -> None:
    """convnext has no BatchNorm, and scales of layers that LARS must leave out."""
    pytest.importorskip("timm", reason="the extra timm is not installed")
    plain = ("model.width=1", "model.last_stride=2", "data.size_schedule=64", "optim.lr=0.1")
    config = (f"model.arch={arch}", *plain)
    ends = []
    for stage in (0, 1):
        run = stepper(machine, tmp_path, stage=stage, config=config)
        run.state.loader.set_views(view_geometry(run.state.config))
        before = weights(run)
        advance(run, 2)
        after = weights(run)
        moved = [name for name in before if not torch.equal(after[name], before[name])]
        assert {n for n, p in after.items() if p.ndim > 1} <= set(moved)  # what LARS adapts
        ends.append(after)
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["resnet18.pth", "nested.pt", "resnet18.safetensors"])
def test_a_file_of_torchvision_starts_both_networks(
    tmp_path: Path, machine: Machine, kind: str
) -> None:
    theirs = torchvision.models.resnet18().state_dict()
    path = tmp_path / kind
    if kind == "nested.pt":
        old = {f"module.{k}": t for k, t in theirs.items() if not k.endswith("tracked")}
        torch.save({"state_dict": old, "epoch": 90}, path)
    elif kind.endswith(".pth"):
        torch.save(theirs, path)
    else:
        save_file(theirs, path)
    overrides = ("model.width=1", "data.colour=device")
    asked = ask(config=str(tiny_file(tmp_path)), overrides=overrides, resume=False, init_from=path)
    begun, parts = start(tmp_path / "run", machine, asked=asked)
    (receipt,) = begun.notes
    assert f"of the {len(theirs) - 2} tensors of resnet18 matched" in receipt
    assert "left over: fc.bias, fc.weight" in receipt and "heads start at random" in receipt
    missing = "bn1.num_batches_tracked" if kind == "nested.pt" else "missing: none"
    assert missing in receipt
    for network in (parts.harl, parts.harl.target):
        weight = network.backbone.get_parameter("layer4.1.conv2.weight")
        assert torch.equal(weight.detach().cpu(), theirs["layer4.1.conv2.weight"])
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["starts"][0]["init_from"] == str(path)


def test_a_run_begins_again_with_the_weights_that_it_began_with(
    tmp_path: Path, machine: Machine
) -> None:
    path, run = tmp_path / "theirs.pth", tmp_path / "run"
    first, other = (torchvision.models.resnet18().state_dict() for _ in range(2))
    torch.save(first, path)
    new: dict[str, Any] = {"overrides": ("model.width=1", "data.colour=device"), "init_from": path}
    start(run, machine, asked=ask(config=str(tiny_file(tmp_path)), resume=False, **new))
    torch.save(other, path)
    with pytest.raises(ConfigError, match=r"theirs\.pth has other weights than .* began with"):
        start(run, machine, asked=ask())
    torch.save(first, path)
    begun, parts = start(run, machine, asked=ask())
    assert begun.step == 0
    weight = parts.harl.backbone.get_parameter("conv1.weight")
    assert torch.equal(weight.detach().cpu(), first["conv1.weight"])


def test_threads_that_load_leave_the_callers_random_numbers_alone(run: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    for _ in range(5):
        torch.manual_seed(7)
        with ThreadPoolExecutor(8) as pool:
            loaded = [*pool.map(lambda _: load_encoder(run)[0], range(8))]
        assert torch.equal(torch.rand(3), expected)
    first, *others = (encoder.state_dict() for encoder in loaded)
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)


def test_a_folder_of_runs_of_seeds_names_them(tmp_path: Path) -> None:
    (tmp_path / "seeds" / "seed-3").mkdir(parents=True)
    (tmp_path / "seeds" / "seed-3" / "config.yaml").touch()
    with pytest.raises(CheckpointError, match=r"a run for each seed: give one, .*seeds/seed-3"):
        load_pretrained(tmp_path / "seeds")


def test_a_load_of_a_run_says_what_matched(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder, config = load_encoder(run)
    count = len(encoder.native.state_dict())
    receipt = f"weights: {count}/{count} tensors, torchvision names, {run} step 12"
    assert receipt in capsys.readouterr().err.splitlines()
    assert open_initial(run, config.model).notes == (receipt,)


def wrong_file(path: Path, kind: str) -> None:
    theirs = torchvision.models.resnet18().state_dict()
    if kind == "other shapes":
        torch.save(torchvision.models.resnet50().state_dict(), path)
    elif kind == "nothing":
        torch.save({"weight": torch.zeros(2)}, path)
    elif kind == "one missing":
        torch.save({k: t for k, t in theirs.items() if k != "layer2.0.conv1.weight"}, path)
    elif kind == "not finite":
        theirs["conv1.weight"][0, 0, 0, 0] = torch.nan
        torch.save(theirs, path)
    elif kind == "code":
        torch.save(torchvision.models.resnet18(), path)
    elif kind == "garbage":
        path.write_bytes(b"\xff" * 100)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("other shapes", r"of the 120 tensors of resnet18 matched.*All of the backbone must match"),
        ("nothing", r"0 tensors matched: expected are conv1\.weight, .*layer1\.0\.conv1\.weight"),
        ("one missing", r"119 of the 120 .*missing: layer2\.0\.conv1\.weight"),
        ("not finite", r"conv1\.weight holds values that are not finite"),
        ("code", r"object of type torchvision\.models\.resnet\.ResNet.*state_dict\(\)"),
        ("garbage", "cannot be read as plain weights"),
        ("absent", "does not exist: give a run"),
    ],
)
def test_a_file_that_does_not_serve_is_refused(tmp_path: Path, kind: str, named: str) -> None:
    path = tmp_path / "weights.pth"
    wrong_file(path, kind)
    with pytest.raises(CheckpointError, match=named):
        open_initial(path, RESNET18)


@pytest.mark.parametrize("name", ["encoder", "step-00000001"])
def test_notes_beside_anothers_weights_make_no_checkpoint_of_them(
    tmp_path: Path, name: str
) -> None:
    """Many write a .json of their own there."""
    path = tmp_path / f"{name}.safetensors"
    save_file(torchvision.models.resnet18().state_dict(), path)
    path.with_suffix(".json").write_text('{"name": "my encoder"}')
    loaded = load_pretrained(path)
    assert "torchvision names" in str(loaded.receipt) and loaded.record is None
    assert isinstance(open_initial(path, loaded.model), EncoderFile)
    with pytest.raises(CheckpointError, match="no checkpoint of this program: load_pretrained"):
        load_encoder(path)


@pytest.mark.parametrize("beside", [None, '{"name": "my encoder"}'])
def test_a_checkpoint_that_was_copied_without_its_record_is_to_be_copied_whole(
    tmp_path: Path, beside: str | None
) -> None:
    written, _ = checkpoint(tmp_path / "run", arch="resnet18", width=0.125)
    copy = tmp_path / "best.safetensors"
    shutil.copy(written.path, copy)
    if beside is not None:
        copy.with_suffix(".json").write_text(beside)
    with pytest.raises(CheckpointError, match=r"best\.json.*its \.json with its \.safetensors"):
        load_pretrained(copy)
    shutil.copy(written.path.with_suffix(".json"), copy.with_suffix(".json"))  # the advice works
    assert load_pretrained(copy).record == written.record


def test_checkpoints_are_told_from_other_files(tmp_path: Path) -> None:
    written, _ = checkpoint(tmp_path / "run", arch="resnet18", width=0.125)
    for path in (tmp_path / "run", written.path):
        assert open_initial(path, RESNET18) == written
    note = written.path.with_suffix(".json").rename(tmp_path / "note")
    with pytest.raises(CheckpointError, match=r"step-00000003\.json"):
        open_initial(written.path, RESNET18)
    note.rename(written.path.with_suffix(".json"))
    written.path.write_bytes(b"\xff" * written.record.tensors_bytes)
    with pytest.raises(CheckpointError, match="SHA-256"):  # its record knows more than its tensors
        open_initial(written.path, RESNET18)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["bn1.running_mean", "bn1.running_var"])
def test_an_encoder_that_gives_no_numbers_is_refused(
    tmp_path: Path, name: str, value: float
) -> None:
    if (name, value) == ("bn1.running_mean", -1.0):
        return  # a mean may be
    checkpoint(tmp_path / "run", arch="resnet18", width=0.125, spoil={name: value})
    what = rf"{name} holds variances below 0" if value == -1.0 else "are not finite"
    with pytest.raises(CheckpointError, match=f"{what}.*There is no other checkpoint"):
        export_encoder(tmp_path / "run", out := tmp_path / "out")
    assert not out.exists()


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "finished", "checkpoints/latest", "checkpoints/step-00000009.safetensors"],
)
def test_no_output_takes_the_place_of_a_runs_own_file(tmp_path: Path, name: str) -> None:
    checkpoint(tmp_path / "run", arch="resnet18", width=0.125)
    with pytest.raises(OutputError, match="is a file of the run itself"):
        check_apart(tmp_path / "run" / name, option="--out")
    check_apart(tmp_path / Path(name).name, option="--out")  # elsewhere it is any name
    check_apart(tmp_path / "run" / "checkpoints" / "encoder.safetensors", option="--out")


def test_no_output_takes_the_place_of_what_is_said_of_several_seeds(tmp_path: Path) -> None:
    check_apart(tmp_path / "seeds.json", option="--out")
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "config.yaml").touch()
    with pytest.raises(OutputError, match="is a file of the run itself"):
        check_apart(tmp_path / "seeds.json", option="--out")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_no_output_takes_the_place_of_an_exports_own_file(tmp_path: Path, name: str) -> None:
    checkpoint(tmp_path / "run", arch="resnet18", width=0.125)
    export_encoder(tmp_path / "run", tmp_path / "out")
    with pytest.raises(OutputError, match="is a file of the export itself"):
        check_apart(tmp_path / "out" / name, option="--out")
    check_apart(tmp_path / name, option="--out")
    check_apart(tmp_path / "out" / "lineval.json", option="--out")


def test_a_record_of_another_network_is_one_line(tmp_path: Path) -> None:
    written, tensors = checkpoint(tmp_path / "run", arch="resnet18", width=0.125)
    config = written.record.config
    wide = config.model_copy(update={"model": config.model.model_copy(update={"width": 0.25})})
    known = written.record.model_dump(include={"step", "epoch", "epoch_step", "engine", "data"})
    weights = {f"online.backbone.{name}": tensor for name, tensor in tensors.items()}
    write_checkpoint(written.path.parent, tensors=weights, record={**known, "config": wide})
    with pytest.raises(CheckpointError, match=r"size mismatch for conv1\.weight") as caught:
        load_encoder(tmp_path / "run")
    assert len(str(caught.value)) < 600 and str(caught.value).isprintable()


def test_a_file_of_another_kind_is_no_folder_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(
        CheckpointError, match=r"photo\.jpg is no checkpoint by its name: give a run"
    ):
        load_pretrained(tmp_path / "photo.jpg")


@pytest.mark.parametrize("name", ["typo.safetensors", "typo.pth", "runs/typo"])
def test_weights_that_are_not_there_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{name} does not exist: give a run"):
        load_pretrained(tmp_path / name)


@pytest.mark.parametrize("name", ["https://example.org/x.pth", "s3://bucket/run"])
def test_weights_behind_a_url_are_told_from_missing_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is a URL, .* copy them"):
        load_pretrained(name)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_pointer_in_place_of_weights_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read.* pointer of Git LFS"):
        load_pretrained(tmp_path / name)


def test_a_pointer_in_place_of_a_checkpoints_tensors_is_named(folder: Path) -> None:
    path = max((folder / "checkpoints").glob("*.safetensors"))
    path.write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"a pointer of Git LFS, .*git lfs pull"):
        load_pretrained(folder)
