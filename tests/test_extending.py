"""docs/extending.md holds: its code adds one dummy of each kind from outside, and that works."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from harl_fast import AUGMENTATIONS, BACKBONES, HARL, LOSS_TERMS, LossTerm, ModelConfig, ViewConfig
from harl_fast.config import LossConfig, RunConfig
from harl_fast.data.views.color_device import Colouring, Photometric
from harl_fast.engine.checkpoint.format import write_checkpoint
from harl_fast.engine.monitor.sink import RunInfo
from harl_fast.engine.monitor.sinks import SINKS, Sinks, log_line
from harl_fast.engine.networks import build_model, load_encoder
from harl_fast.engine.views import view_geometry
from harl_fast.errors import ConfigError
from harl_fast.model.ema import ema_pairs, ema_update
from harl_fast.optim.build import build_optimizer
from harl_fast.runfiles import RunFolder
from harl_fast.section import validated
from preprocess.masks import MASK_METHODS, find_mask
from preprocess.masks.registry import find_method, method_facts, parse_spec
from tests.betons import plain_item, write_beton
from tests.engine.support import BATCH, STEPS, tiny_file
from tests.launch.jobs import deepspeed, run

DOCS = Path(__file__).parents[1] / "docs"
TABLES = (AUGMENTATIONS, BACKBONES, LOSS_TERMS, MASK_METHODS, SINKS)
HEADS = {"projector_hidden": 8, "projector_out": 4, "predictor_hidden": 8}
TINY = ModelConfig.model_validate({"arch": "tiny", **HEADS})
FIGURES = dict.fromkeys(
    ("z_std", "fg", "empty", "skipped", "wait", "wait_worst", "img_s", "lr", "tau", "eta_s"), 0.5
) | {"epoch": 1.0, "step": 3.0, "steps": 1.0, "loss": 1.5, "loss/ring": 1.2345}
Import = Callable[[str], ModuleType]


def examples(page: str) -> dict[str, str]:
    """Return the Python blocks of a page that begin with the name of a file, by that name."""
    blocks = re.findall(r"```python\n(# (\w+)\.py.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return {name: code for code, name in blocks}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Import]:
    """Return what imports an example as a module of a user's; the tables are as before after it."""
    code = examples("extending.md") | examples("masks.md")
    for name, text in code.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = [dict(table) for table in TABLES]
    yield importlib.import_module
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)  # type: ignore[arg-type]  # its own
    for name in code:
        sys.modules.pop(name, None)


def batch() -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(6, 3, 64, 64, generator=generator) for _ in range(2)]
    return views, [torch.rand(6, 4, 4, generator=generator) for _ in range(2)]


def test_a_backbone_is_trained_saved_and_loaded(load: Import, tmp_path: Path) -> None:
    load("my_backbone")
    config = RunConfig(epochs=20, model=TINY)
    assert [view.cells for view in view_geometry(config)] == [14, 14]  # of 224 px
    harl = build_model(config)
    optimizer = build_optimizer(config.optim, harl)
    before = {name: p.detach().clone() for name, p in harl.named_parameters()}
    loss, _ = harl(*batch(), alpha=1.0, beta=0.5)
    loss.backward()
    optimizer.step()
    ema_update(*ema_pairs(harl.target, harl), tau=0.5)
    for name, parameter in harl.named_parameters():
        assert not torch.equal(parameter, before[name]), name

    place = {"step": 1, "epoch": 0, "epoch_step": 1, "engine": {}, "data": {}}
    tensors = {f"online.{name}": tensor for name, tensor in harl.state_dict().items()}
    write_checkpoint(tmp_path, tensors=tensors, record={**place, "config": config})
    encoder, found = load_encoder(tmp_path)
    assert found == config
    views, _ = batch()
    assert torch.equal(encoder(views[0]), harl.backbone.eval()(views[0]))


def test_a_loss_term_is_weighted_and_reported(load: Import) -> None:
    load("my_backbone")
    load("my_ring")
    results = {}
    for weight in (0.0, 0.25):
        torch.manual_seed(0)
        harl = HARL(TINY, LossConfig(type="byol", extra={"ring": weight}))
        results[weight] = harl(*batch(), alpha=1.0, beta=0.5)
    (without, terms), (added, figures) = results.values()
    assert "loss/ring" not in terms  # a weight of 0 computes nothing
    torch.testing.assert_close(added, without + 0.25 * figures["loss/ring"])
    assert "ring 1.2345" in log_line(FIGURES, epochs=2)


def test_an_augmentation_changes_its_share_of_pictures_alike_on_both_ways(load: Import) -> None:
    load("my_shade")
    policy = ViewConfig(size_px=8, jitter_p=0.0, gray_p=0.0, blur_p=0.0, augment={"shade": 0.3})
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    ids, images = np.arange(400), torch.full((400, 8, 8, 3), 255, dtype=torch.uint8)
    device = Photometric([policy], mean=mean, std=std, seed=3)(images, view=0, ids=ids, epoch=0)
    pixel = device[:, 0, 0, 0]
    assert 0.2 < (pixel < 1.0).float().mean() < 0.4 and 0.5 <= pixel.min() < pixel.max() == 1.0
    loader = np.ones((400, 8, 8, 3), np.float32)
    Colouring((policy,), mean, std).augment([loader], ids, seed=3, epoch=0)
    torch.testing.assert_close(torch.from_numpy(loader).permute(0, 3, 1, 2), device)


def test_a_mask_method_serves_by_its_path_and_by_the_table(load: Import) -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[16:48, 16:48] = 115  # 0.45 of white: between both levels
    (mask, stand_in), (_, none_found) = (
        find_mask(rgb, f"{{my_masks.bright: {{level: {level}}}}}") for level in (0.4, 0.5)
    )
    assert not stand_in and none_found
    assert mask.mean() == pytest.approx(0.25, abs=0.05) and mask[32, 32] and not mask[2, 2]
    assert method_facts(parse_spec("{my_masks.bright: {level: 0.4}}"))["supervision"] == "unknown"
    MASK_METHODS["shiny"] = find_method("my_masks.bright")
    np.testing.assert_array_equal(find_mask(rgb, "{shiny: {level: 0.4}}")[0], mask)


def test_a_sink_writes_what_it_is_told(load: Import, tmp_path: Path) -> None:
    load("my_sink")
    with Sinks(RunInfo(RunFolder(tmp_path), epochs=2)) as sinks:
        sinks.write(FIGURES)
        sinks.write({**FIGURES, "step": 4.0, "loss": 1.25})
    assert (tmp_path / "losses.txt").read_text() == "3 1.5000\n4 1.2500\n"


def test_a_key_is_checked_reaches_its_component_and_is_documented(
    load: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("my_backbone")
    section = load("my_key").RingLoss
    with pytest.raises(ConfigError, match="'rong'; did you mean 'ring'"):
        validated(section, {"rong": 0.5}, where="my.yaml")
    with pytest.raises(ConfigError, match=r"ring: .*less than or equal to 1"):
        validated(section, {"ring": 2.0}, where="my.yaml")
    outline = LossTerm(lambda foreground: 1.0 - foreground, lambda loss, alpha, beta: loss.ring)
    monkeypatch.setitem(LOSS_TERMS, "outline", outline)
    _, figures = HARL(TINY, section(ring=0.5))(*batch(), alpha=1.0, beta=0.5)
    assert "loss/outline" in figures

    spec = importlib.util.spec_from_file_location("configuration_page", DOCS / "configuration.py")
    assert spec and spec.loader
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    row = "| `loss.ring` | `0.0` | number ≥ 0, ≤ 1 | Weight of the object's outline. |"
    assert row in page.tables(section, "loss.")


@pytest.mark.slow
def test_a_run_started_by_a_script_of_ones_own_takes_them_all(load: Import, tmp_path: Path) -> None:
    write_beton(tmp_path / "train.beton", plain_item, count=100)
    added = ("model.arch=tiny", "loss.extra.ring=0.25", "data.views.0.augment.shade=0.3")
    result = run(
        [
            *(*deepspeed(1), tmp_path / "my_pretrain.py", "--data", tmp_path, "--run"),
            *(tmp_path / "run", "--deepspeed_config", "ds_configs/cpu.json"),
            *("--config", tiny_file(tmp_path), "--engine-set", f"train_batch_size={BATCH}"),
            *(word for setting in added for word in ("--set", setting)),
        ],
        log=tmp_path / "log",
    )
    assert result.code == 0, result.text
    lines = (tmp_path / "run" / "losses.txt").read_text().splitlines()
    assert lines[-1].split()[0] == str(2 * STEPS)
    assert '"loss/ring"' in (tmp_path / "run" / "metrics.jsonl").read_text()
    load("my_backbone")
    assert load_encoder(tmp_path / "run")[0].out_channels == 8


def test_the_page_has_an_example_of_each_kind() -> None:
    assert set(examples("extending.md")) == {
        "my_pretrain", "my_ring", "my_backbone", "my_shade", "my_sink", "my_key"
    }  # fmt: skip
    assert set(examples("masks.md")) == {"my_masks"}
