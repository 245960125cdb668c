"""Views by epoch: the size schedule from configuration to network, and who colours them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from harl_fast.data.container.fields import open_reader
from harl_fast.data.loader import Batch
from harl_fast.data.order import chunk_length
from harl_fast.data.views.color_device import Colouring
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.compilation import compiled_graphs
from harl_fast.engine.machine import Machine
from harl_fast.engine.trainer import Stepper, Trainer, build
from harl_fast.engine.views import (
    build_loader,
    loader_colours,
    sizes_in,
    sizes_text,
    small_map_text,
    view_geometry,
    views_at,
)
from harl_fast.errors import ConfigError
from harl_fast.runfiles import RunFolder
from tests.engine.support import BATCH, STEPS, FakeLoader, engine_config, prepare, tiny_config
from tests.engine.test_pretraining import assert_same, stop_at

CROPS = "data.views=[{size_px: 32}, {size_px: 32}, *]".replace(
    "*", ", ".join(["{size_px: 16, scale: [0.05, 0.2], role: online}"] * 2)
)
"""Two views, and two smaller ones that only the online network sees."""
GROWING = "data.size_schedule=steps:32,0.5:48"
"""Of the two epochs the second is larger."""


class Recording(FakeLoader):
    """A stand-in that notes in which epoch it was given which sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[list[int]] = []

    def set_views(self, views: Sequence[ViewGeometry], *, colour: Colouring | None = None) -> float:
        self.given.append([view.size_px for view in views])
        return super().set_views(views, colour=colour)


def test_each_epoch_has_its_size_and_cells_follow(tmp_path: Path) -> None:
    schedule = "data.size_schedule=steps:160,0.7:192,0.85:224"
    config = tiny_config(tmp_path, overrides=["epochs=20", schedule])
    sizes = [[view.size_px for view in views_at(config, epoch=epoch)] for epoch in range(20)]
    assert sizes == [[160, 160]] * 14 + [[192, 192]] * 3 + [[224, 224]] * 3
    grids = [[view.cells for view in view_geometry(config, epoch=e)] for e in (0, 14, 19)]
    assert grids == [[10, 10], [12, 12], [14, 14]]  # 1/16 of the side: the last stride is 1
    assert sizes_in(config) == {160, 192, 224}
    changed = views_at(config, epoch=14)[1].model_dump()
    assert changed | {"size_px": 32} == config.data.views[1].model_dump()


def test_a_schedule_is_of_the_views_that_the_target_sees(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, overrides=[CROPS, GROWING])
    sizes = [[view.size_px for view in views_at(config, epoch=epoch)] for epoch in range(2)]
    assert sizes == [[32, 32, 16, 16], [48, 48, 16, 16]]
    assert sizes_in(config) == {16, 32, 48}
    assert sizes_text(view_geometry(config)) == "32 px, 2 x 2 cells and 16 px, 1 x 1 cells"


def test_without_a_schedule_each_view_keeps_its_own_size(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, overrides=["data.views.1.size_px=48"])
    for epoch in (0, 1):
        assert [view.size_px for view in view_geometry(config, epoch=epoch)] == [32, 48]


def test_a_view_knows_its_crop(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, overrides=["data.views.1.crop=foreground>=0.2"])
    assert [view.crop for view in view_geometry(config)] == ["random", "foreground>=0.2"]


def test_a_new_size_reaches_loader_colours_and_network_and_is_announced(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    loader = Recording()
    run = prepare(machine, tmp_path, loader=loader, config=(GROWING,))
    colour, seen = run.state.photometric, []
    assert colour is not None

    def look(module: object, inputs: tuple[Any, ...]) -> None:
        views, cells = inputs[:2]
        sigma = {policy.size_px for policy in colour.policies}
        seen.append(([v.shape[-1] for v in views], [c.shape[-1] for c in cells], sigma))

    run.state.harl.register_forward_pre_hook(look)
    assert run.run() == 0
    assert loader.given == [[48, 48]]
    assert seen == [([32, 32], [2, 2], {32})] * STEPS + [([48, 48], [3, 3], {48})] * STEPS
    lines = [line for line in capsys.readouterr().err.splitlines() if "views of" in line]
    assert lines == ["epoch 2: views of 48 px, 3 x 3 cells (0.2 s)"]


def test_a_missing_compiler_is_told_before_the_first_step(machine: Machine, tmp_path: Path) -> None:
    if machine.gpus:
        pytest.skip("asked of CPUs alone")
    config = tiny_config(tmp_path, overrides=["model.compile=true"])
    missing = torch._inductor.config.patch({"cpp.cxx": (None, "/none/g++")})
    with missing, pytest.raises(ConfigError, match=r"/none/g\+\+.*model\.compile=false"):
        build(config, engine_config(), machine, loader=FakeLoader())  # type: ignore[arg-type]


def test_the_announcement_speaks_of_compilation(
    machine: Machine, tmp_path: Path, capsys: Any
) -> None:
    run = prepare(machine, tmp_path, config=("model.compile=true", GROWING))
    run._prepare_epoch(1)
    assert "torch.compile will compile again" in capsys.readouterr().err


def in_parts(
    machine: Machine,
    folder: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    changes: tuple[str, ...],
    stop: int,
    sizes: list[int],
) -> Path:
    """Assert that a run stopped after ``stop`` steps and resumed equals a whole one; return that.

    With the real loader, which a resumed run builds for the epoch it starts in: its views have
    ``sizes`` in pixels.
    """
    config, whole, parts = (
        tiny_config(folder, overrides=changes),
        folder / "whole",
        folder / "parts",
    )
    whole.mkdir(), parts.mkdir()
    loader = build_loader(config, engine_config(), machine, data=data)
    assert prepare(machine, whole, loader=loader, config=changes).run() == 0
    run = prepare(machine, parts, loader=loader, config=changes)
    with monkeypatch.context() as patched:
        stop_at(run, stop, patched)
        assert run.run() == 0
    loader.close()
    saved = open_checkpoint(parts)
    again = build_loader(config, engine_config(), machine, data=data, epoch=saved.record.epoch)
    assert [view.size_px for view in again.views] == sizes
    assert prepare(machine, parts, loader=again, config=changes, checkpoint=saved).run() == 0
    again.close()
    assert_same(whole, parts)
    return whole


@pytest.mark.parametrize(("stop", "size_px"), [(STEPS - 2, 32), (STEPS, 48)])
def test_a_run_resumed_before_or_at_the_change_equals_a_whole_one(
    machine: Machine,
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
    size_px: int,
) -> None:
    changes, sizes = (GROWING, "data.colour=loader"), [size_px] * 2
    in_parts(machine, tmp_path, data, monkeypatch, changes=changes, stop=stop, sizes=sizes)


def test_a_multi_crop_run_resumed_within_an_epoch_equals_a_whole_one(
    machine: Machine, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With views that grow, and a faster predictor of the small views' own."""
    changes = (CROPS, GROWING, "model.predictor_per=role", "optim.predictor_lr_scale=4")
    sizes = [48, 48, 16, 16]
    whole = in_parts(
        machine, tmp_path, data, monkeypatch, changes=changes, stop=STEPS + 2, sizes=sizes
    )
    names = open_checkpoint(whole).tensors("optim")
    assert "momentum_buffer.online_predictor.out.weight" in names


def test_a_run_with_regions_of_an_earlier_map_resumes_as_a_whole_one(
    machine: Machine, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (GROWING, "loss.type=byol+f_loss", "loss.level=2")
    whole = in_parts(
        machine, tmp_path, data, monkeypatch, changes=changes, stop=STEPS + 2, sizes=[48, 48]
    )
    checkpoint = open_checkpoint(whole)
    assert "region_projector.out.weight" in checkpoint.tensors("target")
    assert "momentum_buffer.region_predictor.out.weight" in checkpoint.tensors("optim")
    config = tiny_config(tmp_path, overrides=changes)
    assert [view.cells for view in view_geometry(config, epoch=0)] == [4, 4]


def test_two_views_of_different_sizes_train(machine: Machine, tmp_path: Path, data: Path) -> None:
    other = ("data.views.1.size_px=48", "data.colour=loader")
    config = tiny_config(tmp_path, overrides=other)
    loader = build_loader(config, engine_config(), machine, data=data)
    run = prepare(machine, tmp_path, loader=loader, config=(*other, "epochs=1"))
    before = run.state.harl.backbone.conv1.weight.detach().clone()
    assert run.run() == 0
    assert not torch.equal(before, run.state.harl.backbone.conv1.weight)


def test_every_size_is_compiled_once(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, compile_ = CompileCounter(), torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **how: compile_(self, backend=counter, **how)
    )
    sizes = (32, 48, 64, 80, 96, 112)
    steps = ",".join(["steps:32", *(f"0.{n}:{size}" for n, size in enumerate(sizes[1:], 1))])
    overrides = ["epochs=10", "model.compile=true", f"data.size_schedule={steps}"]
    config = tiny_config(tmp_path, overrides=overrides)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        parts = build(config, engine_config(), machine, loader=FakeLoader())  # type: ignore[arg-type]
        counts = []
        for size in (*sizes, *sizes):
            views = [torch.rand(4, 3, size, size) for _ in range(2)]
            cells = [torch.rand(4, size // 16, size // 16) for _ in range(2)]
            parts.harl(views, cells, alpha=0.6, beta=0.3)[0].backward()
            counts.append(counter.frame_count)
    torch._dynamo.reset()
    # Two backbones a size; the heads, which see vectors, come with the first.
    assert np.diff(counts).tolist() == [2] * 5 + [0] * 6


def test_the_graphs_of_torch_compile_are_told(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, **how: compile_(self, backend=CompileCounter(), **how),
    )
    torch._dynamo.reset()
    run = prepare(machine, tmp_path, config=("model.compile=true", GROWING))
    before = compiled_graphs()
    assert run.run() == 0
    torch._dynamo.reset()
    told = re.findall(
        r"^epoch (\d): torch.compile has made (\d+) graphs", capsys.readouterr().err, re.MULTILINE
    )
    first, second = (int(count) - before for _, count in told)
    # Backbones and heads of both networks; then both backbones for the larger views.
    assert [epoch for epoch, _ in told] == ["1", "2"] and second == first + 2 and first >= 5


def test_a_wrong_schedule_is_refused_before_anything_is_read(
    machine: Machine, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, overrides=["data.size_schedule=steps:32,0.5:4"])
    with pytest.raises(ConfigError, match="4 px is outside"):
        build_loader(config, engine_config(), machine, data=tmp_path / "missing")


def test_the_data_keys_reach_the_loader(machine: Machine, tmp_path: Path, data: Path) -> None:
    keys = ["data.order=quasi", "data.damaged=replace"]
    config = tiny_config(tmp_path, overrides=keys)
    loader = build_loader(config, engine_config(), machine, data=data)
    assert loader.order.kind == "quasi" and loader.damage.policy == "replace"
    stored = open_reader(data / "train.beton").alloc_table["size"].sum()
    assert loader.order.chunk == chunk_length(count=100, total_bytes=int(stored))
    loader.close()


def test_views_coloured_by_the_loader_reach_the_network_as_they_are(
    machine: Machine, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, overrides=["data.colour=loader"])
    parts = build(config, engine_config(), machine, loader=FakeLoader())  # type: ignore[arg-type]
    assert parts.photometric is None
    run, plain = Stepper(parts), FakeLoader().batch(0)
    views = tuple(
        torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last) for _ in range(2)
    )
    given, cells = run._inputs(Batch(views, plain.cells, plain.labels, plain.ids), epoch=0)
    assert all(torch.equal(*pair) for pair in zip(given, views, strict=True))
    assert all(torch.equal(*pair) for pair in zip(cells, plain.cells, strict=True))
    folder = RunFolder(tmp_path)
    Trainer(parts, folder)._prepare_epoch(1)  # no colours of its own to adapt


def test_the_device_colours_where_it_is_told_to(tmp_path: Path) -> None:
    for device in (torch.device("cpu"), torch.device("cuda")):
        for choice in ("loader", "device"):
            config = tiny_config(tmp_path, overrides=[f"data.colour={choice}"])
            assert loader_colours(config, device) == (choice == "loader")
    config = tiny_config(tmp_path, overrides=["data.colour=auto"])
    assert loader_colours(config, torch.device("cpu"))
    assert not loader_colours(config, torch.device("cuda"))


def test_a_small_view_of_the_online_network_is_warned_of_alone(tmp_path: Path) -> None:
    views = "data.views=[{size_px: 64}, {size_px: 64}, {size_px: 32, role: online}]"
    text = small_map_text(tiny_config(tmp_path, overrides=[views]))
    assert "2 x 2 cells at 32 px" in text and "64 px" not in text


def test_a_feature_map_too_small_for_masks_is_told_with_what_helps(tmp_path: Path) -> None:
    text = small_map_text(tiny_config(tmp_path))  # last_stride is 1 already
    assert "2 x 2 cells at 32 px" in text and "model.stem=small" in text
    assert "last_stride" not in text
    strided = small_map_text(tiny_config(tmp_path, overrides=["model.last_stride=2"]))
    assert "model.last_stride=1" in strided
    for enough in ("model.stem=small", "data.size_schedule=64", "loss.type=byol"):
        assert small_map_text(tiny_config(tmp_path, overrides=[enough])) == ""
