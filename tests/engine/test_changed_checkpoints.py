"""A checkpoint that was changed after it was written is refused for every use, and named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harl_fast.engine.machine import Machine
from harl_fast.engine.networks import load_encoder
from harl_fast.errors import CheckpointError, HarlError
from tests.engine.runs import AS_BEGUN, FIRST, LAST, ask, rewrite, start
from tests.engine.support import STEPS, tiny_file
from tests.full import FullStream


def only_tensors(folder: Path) -> None:
    """Replace the tensors by those of the other checkpoint: names and shapes are the same."""
    checkpoints = folder / "checkpoints"
    shutil.copy(checkpoints / f"{FIRST}.safetensors", checkpoints / f"{LAST}.safetensors")


def flip(share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "checkpoints" / f"{LAST}.safetensors"
        content = bytearray(path.read_bytes())
        content[int(share * (len(content) - 1))] ^= 0x10
        path.write_bytes(content)

    return damage


def edit_record(folder: Path) -> None:
    path = folder / "checkpoints" / f"{LAST}.json"
    path.write_text(path.read_text().replace('"lr": 2.0', '"lr": 1.0'))


def unseal(folder: Path) -> None:
    path = folder / "checkpoints" / f"{LAST}.json"
    tree = json.loads(path.read_text())
    del tree["record_sha256"]
    tree["config"]["optim"]["lr"] = 1.0
    path.write_text(json.dumps(tree))


CHANGED = {f"byte at {share}": flip(share) for share in (0.0, 0.02, 0.3, 0.5, 0.9, 1.0)}
CHANGED |= {
    "tensors of another step": only_tensors,
    "record edited": edit_record,
    "no seal": unseal,
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_changed_checkpoint_is_refused_for_every_use(
    folder: Path, machine: Machine, tmp_path: Path, kind: str
) -> None:
    CHANGED[kind](folder)
    with pytest.raises(CheckpointError, match="SHA-256") as caught:
        start(folder, machine, asked=ask())
    assert LAST in str(caught.value) and FIRST in str(caught.value)  # the one to use instead
    new = ask(config=str(tiny_file(tmp_path)), overrides=AS_BEGUN, resume=False, init_from=folder)
    with pytest.raises(CheckpointError, match="SHA-256"):
        start(tmp_path / "new", machine, asked=new)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_encoder(folder)


def without_digests(record: dict[str, Any]) -> None:
    for key in ("run_id", "tensors_sha256", "record_sha256"):
        del record[key]


def test_an_older_checkpoint_is_taken_with_one_warning(
    folder: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder, record=without_digests)
    begun, _ = start(folder, machine, asked=ask())
    assert begun.step == 2 * STEPS
    assert capsys.readouterr().err.count("warning: ") == 1
    load_encoder(folder)
    assert "is older than checksums" in capsys.readouterr().err


def test_a_full_disk_of_the_log_stops_no_use_of_a_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(folder, record=without_digests)
    monkeypatch.setattr("sys.stderr", FullStream())
    load_encoder(folder)


def poison(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[-1] = float("nan")

    return change


@pytest.mark.parametrize(
    "name",
    [
        "online.backbone.conv1.weight",
        "target.backbone.bn1.bias",
        "optim.momentum_buffer.backbone.conv1.weight",
    ],
)
def test_a_weight_that_is_not_finite_is_named(folder: Path, machine: Machine, name: str) -> None:
    rewrite(folder, tensors=poison(name))
    with pytest.raises(CheckpointError, match=re.escape(name)):
        start(folder, machine, asked=ask())
    if name.startswith("online.backbone"):
        with pytest.raises(CheckpointError, match=re.escape(name)):
            load_encoder(folder)


def test_running_statistics_may_be_not_finite(folder: Path, machine: Machine) -> None:
    """A step whose activations overflowed leaves them so, and the run goes on by bits."""
    rewrite(folder, tensors=poison("online.backbone.bn1.running_var"))
    start(folder, machine, asked=ask())


def lose(*words: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if all(word in name for word in words)]:
            del tensors[name]

    return change


def put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.__setitem__(name, tensor)


MOMENTUM = "optim.momentum_buffer.backbone.bn1.bias"


@pytest.mark.parametrize(
    "change",
    [
        lose("optim."),
        lose(MOMENTUM),
        put(MOMENTUM, torch.zeros(())),
        put(MOMENTUM, torch.zeros(5)),
        put("optim.momentum_buffer.nobody", torch.zeros(5)),
        put("optim.exp_avg.backbone.bn1.bias", torch.zeros(8)),
        put("ranks.cpu_generator", torch.zeros(1, 16, dtype=torch.uint8)),
        put("ranks.cpu_generator", torch.zeros(1, dtype=torch.uint8)),
        put("ranks.cpu_generator", torch.full((1, 5056), 255, dtype=torch.uint8)),
        put("ranks.statistics", torch.zeros(1, 3)),
        put("ranks.statistics", torch.zeros(1)),
        put("online.backbone.bn1.bias", torch.zeros(3)),
        lose("target.backbone.bn1.bias"),
    ],
)
def test_state_of_another_form_is_refused(
    folder: Path, machine: Machine, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    rewrite(folder, tensors=change)
    with pytest.raises(CheckpointError) as caught:
        start(folder, machine, asked=ask())
    assert LAST in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 11},
        {"epoch": 1},
        {"epoch_step": 3},
        {"loader": {"seed": 0, "epoch": 7, "step": 0}},
        {"loader": {"epoch": 2, "step": 0}},
        {"data": {}},
        {"engine": {}},
        {"engine": {"train_batch_size": 16}},
        {"ranks": 0},
        {"ranks": 3},
    ],
)
def test_a_record_at_odds_with_itself_is_refused(
    folder: Path, machine: Machine, changes: dict[str, Any]
) -> None:
    rewrite(folder, record=lambda tree: tree.update(changes))
    with pytest.raises(HarlError) as caught:
        start(folder, machine, asked=ask())
    assert "\n" not in str(caught.value)


def retyped(name: str, dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].to(dtype)

    return change


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.complex64])
@pytest.mark.parametrize(
    "name",
    [
        "online.backbone.conv1.weight",
        "target.backbone.bn1.bias",
        "optim.momentum_buffer.backbone.conv1.weight",
    ],
)
def test_tensors_of_another_dtype_are_refused(
    folder: Path, machine: Machine, name: str, dtype: torch.dtype
) -> None:
    """Torch would drop their digits, or the imaginary half, and say nothing."""
    rewrite(folder, tensors=retyped(name, dtype))
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=f"{re.escape(name[-12:])}.* {kind}|torch.{kind}"):
        start(folder, machine, asked=ask())
    if name.startswith("online.backbone"):
        with pytest.raises(CheckpointError, match=kind):
            load_encoder(folder)


@pytest.mark.parametrize("skipped", [-5, 2 * STEPS + 1])
def test_a_number_of_skipped_steps_that_cannot_be_is_refused(
    folder: Path, machine: Machine, skipped: int
) -> None:
    rewrite(folder, record=lambda record: record.update(skipped=skipped))
    with pytest.raises(CheckpointError, match=r"\.json.*skipped"):
        start(folder, machine, asked=ask())
