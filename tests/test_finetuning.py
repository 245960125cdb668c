"""The configuration of fine-tuning: presets, flags in both spellings, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harl_fast.errors import ConfigError
from harl_fast.finetuning import (
    LEFT_ASIDE,
    LINEAR_PRESETS,
    PRESETS,
    REFUSED,
    change_finetuning,
    flag_keys,
    flag_value,
    left_aside,
    load_finetuning,
    normalised,
    presets,
)
from launch.finetune import main, parse

ASKED = ("seed-linear-cifar10", "seed-linear-imagenet", "semi-1pct", "semi-10pct", "full")


@pytest.mark.parametrize("name", [*ASKED, *LINEAR_PRESETS.values()])
def test_presets_load_read_back_and_name_their_sources(name: str, tmp_path: Path) -> None:
    assert name in presets()
    config = load_finetuning(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.yaml())
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
        ({"train_epochs": 10**9}, ["train_epochs", "less than or equal to 1000000"]),
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


CIFAR10 = r"""--mode=train_then_eval --train_mode=finetune --fine_tune_after_block=4
--zero_init_logits_layer=True --variable_schema=(?!global_step|(?:.*/|^)Momentum|head)
--global_bn=False --optimizer=momentum --learning_rate=0.1 --weight_decay=0.0 --train_epochs=100
--train_batch_size=512 --warmup_epochs=0 --dataset=cifar10 --image_size=32 --eval_split test
--resnet_depth=18 --checkpoint=c --model_dir=m --sk_ratio=0.0 --train_summary_steps=0"""
"""SimCLR's README, "Finetuning the linear head", and flags from its other commands."""
OURS = ["--deepspeed_config", "x.json", "--data", "d"]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_flags_that_cannot_be_followed_are_refused_in_both_spellings(name: str) -> None:
    value = {"dataset": "imagenet2012_subset/1pct"}.get(name, "0.5")
    for words in ([f"--{name}={value}"], [f"--{name.replace('_', '-')}", value]):
        with pytest.raises(ConfigError, match=r"Leave all of these out"):
            normalised(words)


def test_all_flags_that_cannot_be_followed_are_told_together() -> None:
    words = [*CIFAR10.split(), "--use_tpu=False", "--tpu_name", "x", "--dataset=i_subset/1pct"]
    told = (
        r"'--use_tpu=False', '--tpu_name': there are no TPUs here, --deepspeed_config says.*; "
        r"'--dataset=i_subset/1pct': --subset takes"
    )
    with pytest.raises(ConfigError, match=told):
        normalised(words)


def test_a_pasted_command_needs_only_the_engine_and_the_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harl_fast.engine import finetune

    given: dict[str, Any] = {}
    monkeypatch.setattr(finetune, "finetune", lambda **settings: given.update(settings) or 0)
    assert main([*CIFAR10.split(), *OURS]) == 0
    flags = given["flags"]
    assert (flags["train_batch_size"], flags["image_size"], flags["global_bn"]) == (512, 32, False)
    assert given["network"] == {"arch": "resnet18"}
    (note,) = capsys.readouterr().err.splitlines()
    for name in ("--dataset, --eval_split (", "--train_summary_steps (", "--sk_ratio ("):
        assert name in note
    assert all(left_aside({**dict.fromkeys(LEFT_ASIDE), name: "x"}) for name in LEFT_ASIDE)
    assert left_aside(dict.fromkeys(LEFT_ASIDE)) == ""


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
    required = ["--deepspeed_config", "x", "--ckpt", "c", "--data", "d", "--run", "r"]
    assert main([*required, "--mean=0,0,0", "--std", "1,1,1", "--size-px=64"]) == 0
    config = load_finetuning("full", flags=given["flags"], overrides=given["overrides"])
    assert (config.data.mean, config.data.std) == ((0.0,) * 3, (1.0,) * 3)
    assert config.image_size == 64


def test_a_switch_alone_is_true_and_every_flag_has_help() -> None:
    required = ["--deepspeed_config", "x", "--ckpt", "c", "--data", "d", "--run", "r"]
    args = vars(parse([*required, "--random"]))
    assert args["flag:random"] is True and args["flag:seed"] is None
    assert all(flag_keys().values())
