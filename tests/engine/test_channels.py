"""Networks of one channel, from configuration to exported weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harl_fast.config import LUMA_MEAN, LUMA_STD, RGB_MEAN, RunConfig, load_config, override_config
from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.initial import open_initial
from harl_fast.engine.lineval import lineval
from harl_fast.engine.machine import Machine
from harl_fast.engine.networks import load_encoder, load_pretrained
from harl_fast.engine.views import build_loader
from harl_fast.errors import CheckpointError, ConfigError
from harl_fast.model.backbone import Backbone
from harl_fast.model.backbones import BACKBONES, build_backbone
from harl_fast.tools.export import export_encoder
from harl_fast.viz import contact_sheet
from tests.betons import plain_item, write_beton
from tests.engine.support import engine_config, prepare, tiny_config, tiny_file

ONE = "model.in_channels=1"


def test_mean_and_std_follow_the_channels_unless_they_are_given(tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    one = load_config(path, overrides=[ONE])
    assert (one.data.mean, one.data.std) == (LUMA_MEAN, LUMA_STD)
    assert override_config(RunConfig(), [ONE]).data.mean == LUMA_MEAN  # from a resolved copy, too
    assert load_config(path).data.mean == RGB_MEAN
    assert load_config(path, overrides=[ONE, "data.mean=[0.3]"]).data.mean == (0.3,)
    again = RunConfig.model_validate(one.model_dump(mode="json"))
    assert again == one


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([ONE, "data.mean=[0.1,0.2,0.3]"], r"data.mean \[0.1, 0.2, 0.3\] has 3 values, .* is 1;"),
        (["data.std=[0.2]"], r"data.std \[0.2\] has 1 values, model.in_channels is 3; give one"),
        (["model.in_channels=2"], r"model.in_channels"),
        (["model=3", "data=4"], "model"),
    ],
)
def test_values_that_do_not_fit_are_told(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(str(tiny_file(tmp_path)), overrides=overrides)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "timm:resnet18d"])
def test_only_the_first_convolution_knows_of_the_channels(arch: str) -> None:
    if arch.startswith("timm:"):
        pytest.importorskip("timm")
    shapes = []
    for channels in (1, 3):
        section = RunConfig.model_validate({"model": {"arch": arch, "in_channels": channels}}).model
        network = build_backbone(section).eval()
        assert network(torch.zeros(1, channels, 64, 64)).shape[1] == network.out_channels
        assert network.feature_size(64) == 2
        shapes.append({name: t.shape for name, t in network.state_dict().items()})
    differ = [name for name, shape in shapes[0].items() if shapes[1][name] != shape]
    assert len(differ) == 1
    assert (shapes[0][differ[0]][1], shapes[1][differ[0]][1]) == (1, 3)


def test_a_backbone_that_takes_three_channels_is_refused_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BACKBONES, "own", lambda model: Backbone())
    section = RunConfig.model_validate({"model": {"arch": "own", "in_channels": 1}}).model
    with pytest.raises(ConfigError, match="own takes images of 3 channels"):
        build_backbone(section)


@pytest.mark.parametrize("colour", ["device", "loader"])
def test_a_run_of_one_channel_is_judged_drawn_and_exported(
    machine: Machine, tmp_path: Path, data: Path, colour: str
) -> None:
    """On a set in colour, of which it takes the luma."""
    own = [ONE, f"data.colour={colour}", "epochs=1", "log.probe_epochs=1", "log.sheet_epochs=1"]
    config = tiny_config(tmp_path, overrides=own)
    loader = build_loader(config, engine_config(), machine, data=data)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    run = prepare(machine, run_folder, loader=loader, config=own, sheet=contact_sheet)
    assert run.run() == 0
    assert list((run_folder / "sheets").glob("*.png"))
    saved = open_checkpoint(run_folder)
    encoder, found = load_encoder(run_folder)
    assert found.model.in_channels == 1 and found.data.mean == LUMA_MEAN
    assert encoder.get_submodule("conv1").weight.shape[1] == 1

    out = tmp_path / "out"
    export_encoder(saved.path, out)
    exported = load_pretrained(out)
    assert exported.mean == LUMA_MEAN and exported.model.in_channels == 1
    three = tiny_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: conv1.weight.*model.in_channels"):
        open_initial(out, three.model)
    if colour == "device":
        folder = tmp_path / "judged"
        folder.mkdir()
        for name, count in (("train", 80), ("val", 40)):
            write_beton(folder / f"{name}.beton", plain_item, count=count)
        asked = {"size_px": None, "epochs": 1, "batch": 16, "workers": 1, "seed": 0, "out": None}
        assert lineval(ckpt=run_folder, data=folder, random=True, **asked) == 0
