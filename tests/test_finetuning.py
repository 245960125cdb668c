"""The configuration of fine-tuning: presets, flags in both spellings, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harl_fast.errors import ConfigError
from harl_fast.finetuning import (
    LINEAR_PRESETS,
    PRESETS,
    REFUSED,
    change_finetuning,
    flag_keys,
    flag_value,
    load_finetuning,
    normalised,
    presets,
)
from harl_fast.textfile import dump_yaml
from launch.finetune import main, parse

ASKED = ("seed-linear-cifar10", "seed-linear-imagenet", "semi-1pct", "semi-10pct", "full")


@pytest.mark.parametrize("name", [*ASKED, *LINEAR_PRESETS.values()])
def test_presets_load_read_back_and_name_their_sources(name: str, tmp_path: Path) -> None:
    assert name in presets()
    config = load_finetuning(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_yaml(config.model_dump(mode="json")))
    assert load_finetuning(str(copy)) == config
    assert "Source" in (PRESETS / f"{name}.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        # SimCLR's README, as pasted there.
        ("semi-1pct", {"learning_rate": 0.005, "train_epochs": 60, "train_batch_size": 1024}),
        ("semi-10pct", {"learning_rate": 0.005, "train_epochs": 30, "ft_proj_selector": 1}),
        ("seed-linear-cifar10", {"learning_rate": 0.1, "train_epochs": 100, "image_size": 32}),
        ("seed-linear-imagenet", {"train_epochs": 90, "weight_decay": 1e-6, "global_bn": False}),
        ("linear-byol", {"learning_rate": 0.2, "train_epochs": 80, "train_batch_size": 1024}),
    ],
)
def test_presets_say_what_their_sources_say(name: str, values: dict[str, Any]) -> None:
    config = load_finetuning(name)
    assert {key: getattr(config, key) for key in values} == values


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"learning_rat": 1}, ["learning_rat", "did you mean 'learning_rate'"]),
        ({"lr": 1}, ["lr", "write learning_rate"]),
        ({"optimizer": "sgd"}, ["optimizer", "'momentum'", "got 'sgd'"]),
        ({"fine_tune_after_block": 5}, ["fine_tune_after_block", "less than or equal to 4"]),
        ({"zero_init_logits_layer": 1}, ["zero_init_logits_layer", "neither true nor false"]),
        ({"warmup_epochs": 99}, ["warmup_epochs", "leaves none of train_epochs"]),
        ({"head_lr_grid": [1.0, 2.0]}, ["hold_out is 0"]),
        ({"head_lr_grid": [1.0, 2.0], "hold_out": 9}, ["set fine_tune_after_block to 4"]),
        ({"data": {"mean": [124.0]}}, ["data.mean", "less than or equal to 1"]),
    ],
)
def test_mistakes_are_named(flags: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_finetuning("full", flags=flags)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'semi-1pct'"):
        load_finetuning("semi-1pc")


def test_overrides_reach_sections() -> None:
    config = change_finetuning(load_finetuning("full"), overrides=["data.workers=3"])
    assert config.data.workers == 3 and config.train_batch_size == 256


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("zero_init_logits_layer", "True", True),
        ("global_bn", "False", False),
        ("global_bn", "false", False),
        ("learning_rate", "1e-3", 1e-3),
        ("weight_decay", "0.0", 0.0),
        ("ft_proj_selector", "-1", -1),
        ("variable_schema", "(?!a|[b]: c)", "(?!a|[b]: c)"),
        ("subset", "10%", "10%"),
        ("head_lr_grid", "0.1,1,10", [0.1, 1, 10]),
    ],
)
def test_flags_mean_what_they_say(key: str, text: str, value: Any) -> None:
    found = flag_value(key, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_flags_without_counterpart_are_refused_in_both_spellings(name: str) -> None:
    for word in (f"--{name}=x", f"--{name.replace('_', '-')}"):
        with pytest.raises(ConfigError, match=r"leave this out|instead"):
            normalised([word])


def test_tpus_are_refused_naming_the_engine_file() -> None:
    for word in ("--use_tpu=False", "--tpu_name=x"):
        with pytest.raises(ConfigError, match="--deepspeed_config"):
            normalised([word])


def test_both_spellings_are_one_command_line() -> None:
    common = ["--deepspeed_config", "x.json", "--local_rank=0"]
    theirs = ["--data_dir=d", "--model_dir=m", "--checkpoint=c", "--zero_init_logits_layer=True"]
    theirs += ["--ft_proj_selector=-1", "--train_mode=finetune", "--variable_schema=(?!a_b|head)"]
    ours = ["--data", "d", "--run", "m", "--ckpt", "c", "--zero-init-logits-layer", "True"]
    ours += ["--ft-proj-selector", "-1", "--variable-schema", "(?!a_b|head)"]
    assert parse([*common, *theirs]) == parse([*common, *ours])


def test_inputs_of_foreign_weights_have_the_options_of_other_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from harl_fast.engine import finetune

    given: dict[str, Any] = {}
    monkeypatch.setattr(finetune, "finetune", lambda **settings: given.update(settings) or 0)
    required = ["--deepspeed_config", "x", "--data", "d", "--run", "r"]
    assert main([*required, "--mean=0,0,0", "--std", "1,1,1", "--size-px=64"]) == 0
    config = load_finetuning("full", flags=given["flags"], overrides=given["overrides"])
    assert (config.data.mean, config.data.std) == ((0.0,) * 3, (1.0,) * 3)
    assert config.image_size == 64


def test_a_switch_alone_is_true_and_every_flag_has_help() -> None:
    args = vars(parse(["--deepspeed_config", "x", "--data", "d", "--run", "r", "--random"]))
    assert args["flag:random"] is True and args["flag:seed"] is None
    assert all(flag_keys().values())
