"""The method's configuration: presets load, mistakes are named, the resolved copy reads back."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from harl_fast.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    crop_rule,
    dump_config,
    load_config,
    presets,
)
from harl_fast.data.order import Kind
from harl_fast.errors import ConfigError
from harl_fast.model.backbone import ARCHS, STEMS
from harl_fast.model.loss import LOSS_TYPES
from harl_fast.model.pool import MASK_MODES
from harl_fast.optim.build import OPTIMIZERS
from harl_fast.optim.lars import FORMULAS


@pytest.mark.parametrize("name", ["demo", "paper", "repo-pt", "seed-readme", "small"])
def test_presets_load_and_their_resolved_copy_reads_back(name: str, tmp_path: Path) -> None:
    assert name in presets()
    config = load_config(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(str(copy)) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=3", ["optim.lrr", "did you mean 'lr'"]),
        ("data.views.1.siz_px=3", ["data.views.1.siz_px", "did you mean 'size_px'"]),
        ("loss.type=foo", ["loss.type", "'byol+f_loss'", "got 'foo'"]),
        ("data.views.0.flip_p=1.5", ["data.views.0.flip_p", "less than or equal to 1", "1.5"]),
        ("data.views.0.scale=[0.9, 0.1]", ["data.views.0", "0.9", "above the second"]),
        ("data.views.0.crop=foreground>=2", ["data.views.0", "'foreground>=2'", "foreground>=T"]),
        ("data.views=[{}, {}, {}]", ["data.views", "3 views", "BetonLoader"]),
        ("data.order=quazi", ["data.order", "'quasi'", "got 'quazi'"]),
        ("data.colour=gpu", ["data.colour", "'device'", "got 'gpu'"]),
        ("data.damaged=skip", ["data.damaged", "'replace'", "got 'skip'"]),
        ("optim.warmup_epochs=5000", ["warmup_epochs", "epochs"]),
        ("nonsense", ["section.key=value"]),
        ("optim.lr.deep=1", ["optim.lr.deep"]),
    ],
)
def test_a_mistake_names_the_key_the_value_and_the_remedy(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("paper", overrides=[override])
    for word in words:
        assert word in str(caught.value)


def test_an_override_of_one_view_key_keeps_the_other_defaults() -> None:
    views = load_config("paper", overrides=["data.views.0.size_px=96"]).data.views
    assert (views[0].size_px, views[0].blur_p) == (96, 1.0)
    assert (views[1].size_px, views[1].blur_p, views[1].solarize_p) == (224, 0.1, 0.2)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("random", ("random", 0.0)),
        ("center-on-foreground", ("center-on-foreground", 0.0)),
        ("foreground>=0.2", ("foreground", 0.2)),
        ("foreground >= 1", ("foreground", 1.0)),
    ],
)
def test_crops_are_read(text: str, rule: tuple[str, float]) -> None:
    assert crop_rule(text) == rule


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'paper'\?"):
        load_config("papr")


def test_seed_readme_differs_from_paper_as_its_header_says() -> None:
    """sqrt rule: 0.075 x sqrt(4096) = 4.8; linear: 0.2 x 4096 / 256 = 3.2."""
    paper, readme = load_config("paper").optim, load_config("seed-readme").optim
    assert paper.lr * 4096 / 256 == pytest.approx(3.2)
    assert readme.lr * 4096**0.5 == pytest.approx(4.8)


@pytest.mark.parametrize(
    ("section", "key", "names"),
    [
        (ModelConfig, "arch", ARCHS),
        (ModelConfig, "stem", STEMS),
        (LossConfig, "type", LOSS_TYPES),
        (LossConfig, "mask", MASK_MODES),
        (DataConfig, "order", get_args(Kind)),
        (OptimConfig, "name", OPTIMIZERS),
        (OptimConfig, "formula", FORMULAS),
    ],
)
def test_choices_are_those_of_the_modules_that_implement_them(section, key, names) -> None:
    assert set(get_args(section.model_fields[key].annotation)) == set(names)
