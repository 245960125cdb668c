"""A fine-tuned run's classifier: what loads it, and how another fine-tuning starts from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harl_fast.engine.machine import Machine
from harl_fast.engine.networks import load_pretrained
from harl_fast.errors import ConfigError
from harl_fast.tools.export import export_encoder
from harl_fast.tools.hub import load
from tests.betons import write_beton
from tests.engine.tuning import CLASSES, saved, tinted_item, tune

NAMES = tuple(f"class{n}" for n in range(CLASSES))
HEAD = "online.heads.0.weight"


@pytest.fixture(scope="module")
def tuned(
    machine: Machine, run: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "run"
    one, central = {"train_epochs": 1}, ("data.centre=0.8",)
    assert tune(folder, ckpt=run, data=sets, flags=one, overrides=central) == 0
    return folder


@pytest.fixture(scope="module", params=["run", "folder"])
def source(
    request: pytest.FixtureRequest, tuned: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the fine-tuned run, and the folder that it is exported to."""
    if request.param == "run":
        return tuned
    out = tmp_path_factory.mktemp("exported") / "out"
    export_encoder(tuned, out, head=tuned / "eval" / "colours-finetune" / "result.json")
    return out


def test_a_tuned_run_brings_its_head(source: Path, tuned: Path) -> None:
    loaded = load_pretrained(source)
    assert loaded.head is not None and loaded.classes == NAMES and loaded.crop == 0.8
    assert torch.equal(loaded.head.linears[0].weight, saved(tuned)[HEAD])
    with torch.inference_mode():
        found = load(source, endpoints=True)(torch.rand(2, 3, 32, 32))
        assert isinstance(found, dict)
        logits = loaded.head(found["default"])[:, 0]
    torch.testing.assert_close(found["logits_sup"], logits)


@pytest.mark.parametrize("selector", [-1, 1])
def test_a_projector_that_was_tuned_whole_comes_along(
    machine: Machine, run: Path, sets: Path, tmp_path: Path, selector: int
) -> None:
    flags = {"ft_proj_selector": selector, "train_steps": 2}
    assert tune(tmp_path / "run", ckpt=run, data=sets, flags=flags, mode="train") == 0
    loaded, tensors = load_pretrained(tmp_path / "run"), saved(tmp_path / "run")
    assert loaded.head is None  # its rows are not the backbone's
    assert (loaded.projector is not None) is (selector == -1)
    if loaded.projector is not None:
        for name, tensor in loaded.projector.state_dict().items():
            assert torch.equal(tensor, tensors[f"online.projection.{name}"]), name
        last = "online.projector.out.weight"
        assert not torch.equal(loaded.projector.out.weight, saved(run)[last])


def started(folder: Path, *, ckpt: Path, data: Path, **flags: Any) -> Tensor:
    """Return the head after a step that is too small to move it."""
    still = {"fine_tune_after_block": 4, "train_steps": 1, "learning_rate": 1e-30, **flags}
    assert tune(folder, ckpt=ckpt, data=data, flags=still, mode="train") == 0
    return saved(folder)[HEAD]


def test_the_imported_head_is_kept_replaced_or_left_out(
    machine: Machine,
    source: Path,
    tuned: Path,
    sets: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    common: dict[str, Any] = {"ckpt": source, "data": sets}
    theirs = saved(tuned)[HEAD]
    kept = started(tmp_path / "kept", **common, zero_init_logits_layer=False)
    assert torch.equal(kept, theirs)
    assert "head_supervised loaded" in capfd.readouterr().err
    zeros = started(tmp_path / "zeros", **common)
    assert zeros.shape == theirs.shape and float(zeros.abs().max()) < 1e-20
    others = "(?!global_step|head_supervised)"
    fresh = started(
        tmp_path / "fresh", **common, zero_init_logits_layer=False, variable_schema=others
    )
    assert "head_supervised excluded" in capfd.readouterr().err
    assert not torch.equal(fresh, theirs)
    assert float(fresh.std()) == pytest.approx(0.01, rel=0.3)


def test_an_imported_head_of_other_classes_is_refused(
    machine: Machine, source: Path, sets: Path, tmp_path: Path
) -> None:
    three = tmp_path / "three"
    three.mkdir()
    for split in ("train", "val"):
        path = three / f"{split}.beton"
        write_beton(path, lambda n: (*tinted_item(n)[:2], n % 3), count=48)
    common: dict[str, Any] = {"ckpt": source, "data": three}
    told = r"has a head of 4 classes, .* has 3; they differ in 'class3'. Start a new head: "
    with pytest.raises(ConfigError, match=told):
        started(tmp_path / "run", **common, zero_init_logits_layer=False)
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert len(started(tmp_path / "new", **common)) == 3
    with pytest.raises(ConfigError, match="or where the head sits"):
        started(
            tmp_path / "grid",
            ckpt=source,
            data=sets,
            zero_init_logits_layer=False,
            head_lr_grid=(1.0, 2.0),
            hold_out=10,
        )
