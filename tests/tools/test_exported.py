"""Exported folders are files that a user may have received."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from harl_fast import export_encoder
from harl_fast.engine.checkpoint.format import _seal
from harl_fast.engine.initial import open_initial
from harl_fast.engine.networks import load_encoder, load_pretrained
from harl_fast.errors import CheckpointError, ConfigError, OutputError
from harl_fast.model.folder import digests
from harl_fast.tools import forms
from tests.engine.saved import checkpoint
from tests.tools.support import result_of


def rewrite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write other tensors into an exported folder, as if those had been exported."""
    save_file({**load_file(path), **tensors}, path)
    config = path.with_name("config.json")
    tree = json.loads(config.read_text())
    tree["harl_fast"]["files"] = digests(path.parent)
    config.write_text(json.dumps(tree))


def damage(path: Path, name: str) -> None:
    """Flip the last bit of a tensor's first value, and nothing else of a file of safetensors."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    begin, _ = json.loads(content[8:start])[name]["data_offsets"]
    content[start + begin] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model.safetensors", "conv1.weight"),
        ("model.safetensors", "fc.weight"),
        ("projector.safetensors", "linears.0.weight"),
        ("projector.safetensors", ""),
    ],
)
def test_a_damaged_export_is_refused_by_every_reader(
    run: Path, tmp_path: Path, file: str, name: str
) -> None:
    """Also one that lost a file."""
    export_encoder(run, out := tmp_path / "out", head=run / "eval" / "pets-logreg" / "result.json")
    model = load_pretrained(out).model
    if name:
        damage(out / file, name)
    else:
        (out / file).unlink()
    fault = "does not hold what was exported" if name else "is missing"
    told = rf"{file} {fault}: .* export it again by `make export`"
    for path in (out, out / "model.safetensors"):
        for read in (load_pretrained, lambda path: open_initial(path, model)):
            with pytest.raises(CheckpointError, match=told):
                read(path)
    with pytest.raises(CheckpointError, match=told):
        export_encoder(out, tmp_path / "again")


def test_only_inputs_that_a_folder_does_not_state_are_called_assumed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_encoder(run, out := tmp_path / "out", size_px=64)
    capsys.readouterr()
    load_pretrained(out / "model.safetensors")
    assert "assumed" not in capsys.readouterr().err
    tree = json.loads((out / "config.json").read_text())
    del tree["pretrained_cfg"]["std"]
    (out / "config.json").write_text(json.dumps(tree))
    load_pretrained(out)
    assert "64 px (std assumed: the file does not say)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["conv1.weight", "fc.weight"])
def test_an_export_without_digests_of_files_loads_by_that_of_its_backbone(
    run: Path, tmp_path: Path, name: str
) -> None:
    export_encoder(run, out := tmp_path / "out", head=run / "eval" / "pets-logreg" / "result.json")
    tree = json.loads((out / "config.json").read_text())
    del tree["harl_fast"]["files"]
    (out / "config.json").write_text(json.dumps(tree))
    damage(out / "model.safetensors", name)
    if name == "fc.weight":
        assert load_pretrained(out).head is not None
    else:
        with pytest.raises(CheckpointError, match=r"does not hold what was exported"):
            load_pretrained(out)


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
    rewrite(out / "model.safetensors", {"fc.weight": weight, "fc.bias": bias})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*(classifier|complex64)"):
        load_pretrained(out)


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_a_classifier_of_another_number_of_classes_than_are_named_is_refused(
    run: Path, tmp_path: Path, names: list[str]
) -> None:
    export_encoder(run, out := tmp_path / "out")
    head = {"fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}
    rewrite(out / "model.safetensors", head)
    tree = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(tree | {"label_names": names}))
    with pytest.raises(CheckpointError, match=rf"label_names has {len(names)} names, .* 2 classes"):
        load_pretrained(out)
    (out / "config.json").write_text(json.dumps(tree | {"label_names": ["a", "b"]}))
    assert load_pretrained(out).classes == ("a", "b")


@contextlib.contextmanager
def at_most(megabytes: int) -> Iterator[None]:
    """Let this process have so much more memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (now, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def huge_weights(path: Path) -> Path:
    """Write a file of the shape of 15 billion weights."""
    tensors = {"conv1.weight": torch.zeros(1024, 3, 7, 7)}
    for stage, blocks in enumerate((3, 8, 36, 3), start=1):
        for block, name in itertools.product(range(blocks), ("conv1", "conv3")):
            tensors[f"layer{stage}.{block}.{name}.weight"] = torch.zeros(1)
    save_file(tensors, path / "huge.safetensors")
    return path / "huge.safetensors"


def huge_folder(path: Path) -> Path:
    """Export a small network, and state a huge one beside it."""
    checkpoint(path / "run", arch="resnet18", width=0.125)
    export_encoder(path / "run", path / "out")
    tree = json.loads((path / "out" / "config.json").read_text())
    tree["harl_fast"]["model"] |= {"arch": "resnet152", "width": 16.0}
    (path / "out" / "config.json").write_text(json.dumps(tree))
    return path / "out"


def huge_run(path: Path) -> Path:
    """Write a checkpoint of a small network whose record states a huge one."""
    written, _ = checkpoint(path / "run", arch="resnet18", width=0.125)
    note = written.path.with_suffix(".json")
    tree = json.loads(note.read_text())
    tree["config"]["model"] |= {"arch": "resnet152", "width": 16.0}
    note.write_text(json.dumps(tree | {"record_sha256": _seal(tree)}))
    return path / "run"


def huge_projector(path: Path) -> Path:
    """Export a network with a projector of which the first layer states huge further ones."""
    checkpoint(path / "run", arch="resnet18", heads=True, projector_hidden=8, projector_out=8)
    export_encoder(path / "run", path / "out")
    file = path / "out" / "projector.safetensors"
    stated = {"linears.0.weight": torch.zeros(100_000, 1), "linears.1.weight": torch.zeros(1)}
    rewrite(file, stated)
    return path / "out"


def compressed_weights(path: Path) -> Path:
    """Write a file that takes a thousandth of what it unpacks to."""
    small, file = path / "small.pth", path / "compressed.pth"
    torch.save({"conv1.weight": torch.zeros(10)}, small)
    with zipfile.ZipFile(small) as theirs, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as ours:
        for each in theirs.infolist():
            ours.writestr(each.filename, theirs.read(each.filename))
        ours.writestr("archive/data/1", bytes(1 << 20), compress_type=zipfile.ZIP_DEFLATED)
    return file


def repeated_weights(path: Path) -> Path:
    """Write a file of 40 GB that holds one number."""
    tensors = torchvision.models.resnet18().state_dict()
    tensors["fc.weight"] = torch.zeros(1).expand(100_000, 100_000)
    torch.save(tensors, path / "repeated.pth")
    return path / "repeated.pth"


@pytest.mark.parametrize(
    "make", [huge_weights, huge_folder, huge_run, huge_projector, repeated_weights]
)
def test_a_small_file_that_states_a_huge_network_costs_no_memory(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    with at_most(2000), pytest.raises(CheckpointError) as told:
        load_pretrained(path)
    assert "allocate" not in str(told.value)


def test_weights_that_grow_as_they_are_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is compressed, which torch's own files are not"):
        load_pretrained(compressed_weights(tmp_path))


@pytest.mark.parametrize("damage", ["a bit", "a hole"])
def test_weights_that_do_not_match_their_own_checksums_are_refused(
    tmp_path: Path, damage: str
) -> None:
    """torch writes them, and does not look."""
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.ones(1000, 64)}, path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = bytes(4096) if damage == "a hole" else data[middle:][:4096]
    data[middle] ^= damage == "a bit"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: its part 'weights/data/0' .*Copy it"):
        load_pretrained(path)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.float8_e4m3fn])
def test_weights_that_are_no_real_numbers_are_refused(
    run: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    export_encoder(run, out := tmp_path / "out")
    path = out / "model.safetensors"
    rewrite(path, {"conv1.weight": load_file(path)["conv1.weight"].to(dtype)})
    with pytest.raises(CheckpointError, match=rf"conv1\.weight'? holds {dtype}"):
        load_pretrained(out)


def test_what_a_killed_export_of_the_same_number_left_is_replaced(
    run: Path, tmp_path: Path
) -> None:
    """In containers processes count from 1 each time."""
    (tmp_path / f".out.{os.getpid()}.tmp" / "half").mkdir(parents=True)
    export_encoder(run, out := tmp_path / "out")
    assert load_pretrained(out) and [each.name for each in tmp_path.iterdir()] == ["out"]


def test_the_second_of_two_exports_into_one_folder_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, check = tmp_path / "out", forms.FORMS["folder"].check

    def meanwhile(*given: Any) -> str:
        out.mkdir()
        (out / "theirs").touch()
        seen: str = check(*given)
        return seen

    monkeypatch.setitem(forms.FORMS, "folder", replace(forms.FORMS["folder"], check=meanwhile))
    with pytest.raises(
        OutputError, match=r"out was filled by another process meanwhile.*new folder"
    ):
        export_encoder(run, out)
    assert [each.name for each in tmp_path.rglob("*")] == ["out", "theirs"]


def test_an_export_goes_where_a_link_leads(run: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    assert export_encoder(run, tmp_path / "out").startswith(f"{tmp_path / 'out'}: ")
    assert load_pretrained(tmp_path / "disk") and (tmp_path / "out").is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["disk", "out"]


def test_where_a_disk_is_mounted_nothing_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder could not take the place, which the work would end with."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    with pytest.raises(OutputError, match="is where a disk is mounted: give a new folder in it"):
        export_encoder(tmp_path / "run", tmp_path / "out")


@pytest.mark.parametrize("to", ["folder", "torchvision", "detectron2"])
def test_names_that_are_no_utf8_are_exported_and_loaded_back(tmp_path: Path, to: str) -> None:
    run, out = (tmp_path / os.fsdecode(name) for name in (b"run\xff", b"out\xff"))
    checkpoint(run, arch="resnet18")
    if to == "folder":
        pytest.importorskip("timm")
    export_encoder(run, out, to=to)
    if to == "folder":
        assert "equal bits" in export_encoder(out, tmp_path / os.fsdecode(b"again\xff"))


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


def test_a_head_of_a_network_of_other_channels_is_called_another_networks(
    run: Path, tmp_path: Path
) -> None:
    grey = {"mean": [0.4], "std": [0.2]}
    head = result_of(tmp_path / "grey", weights_sha256="e" * 64, seen=grey)
    with pytest.raises(ConfigError, match=r"HEAD .* was trained on the features of .*not on those"):
        export_encoder(run, tmp_path / "out", head=head)


def test_a_reader_of_checkpoints_alone_names_the_one_of_exports(run: Path, tmp_path: Path) -> None:
    export_encoder(run, out := tmp_path / "out")
    for path in (out, out / "model.safetensors"):
        with pytest.raises(CheckpointError, match="no checkpoint of this program: load_pretrained"):
            load_encoder(path)
