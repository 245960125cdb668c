"""The DeepSpeed file: what is accepted, what is refused with which remedy, and what it becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import harl_fast.engine.deepspeed  # noqa: F401  # first of all: it chooses DeepSpeed's device
from harl_fast.engine.config import (
    _DTYPES,
    Batches,
    Bf16Section,
    EngineFile,
    Fp16Section,
    Needs,
    ZeroSection,
    divide_batch,
    read_engine_file,
    run_engine_file,
    settle,
    with_batch,
)
from harl_fast.engine.deepspeed_keys import refuse_keys
from harl_fast.errors import ConfigError
from harl_fast.section import validated
from tests.engine.support import ROOT

MINIMAL = {"train_batch_size": 64, "gradient_clipping": 0.0}


def read(tmp_path: Path, tree: dict[str, Any], *overrides: str) -> EngineFile:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps(tree))
    return read_engine_file(path, overrides=overrides)


def refusal(tmp_path: Path, tree: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settle(read(tmp_path, {**MINIMAL, **tree}, *overrides), ranks=1, source="engine.json")
    return str(caught.value)


def test_the_cpu_file_fits_one_and_two_ranks() -> None:
    file = read_engine_file(ROOT / "ds_configs" / "cpu.json")
    assert settle(file, ranks=1, source="cpu").batches == Batches(64, 64, 1, 1)
    assert settle(file, ranks=2, source="cpu").batches == Batches(64, 32, 1, 2)


@pytest.mark.parametrize(
    ("batch", "ranks", "expected"),
    [(16, 1, (16, 1)), (4096, 1, (64, 64)), (4096, 2, (32, 64)), (96, 1, (48, 2))],
)
def test_another_batch_keeps_micro_batches_as_small(
    batch: int, ranks: int, expected: tuple[int, int]
) -> None:
    file = with_batch(read_engine_file(ROOT / "ds_configs" / "cpu.json"), batch, ranks=ranks)
    assert settle(file, ranks=ranks, source="cpu").batches == Batches(batch, *expected, ranks)


def test_a_batch_that_divides_badly_is_not_cut_into_tiny_ones() -> None:
    for batch, micro in ((127, 127), (134, 67)):
        file = with_batch(read_engine_file(ROOT / "ds_configs" / "cpu.json"), batch, ranks=1)
        assert file.train_micro_batch_size_per_gpu == micro
    file = with_batch(read_engine_file(ROOT / "ds_configs" / "a100x1.json"), 1042, ranks=1)
    assert file.train_micro_batch_size_per_gpu == 2  # 2 x 521, and 512 is what its card holds


@pytest.mark.parametrize(
    ("given", "ranks", "expected"),
    [
        ((128, None, None), 2, (128, 64, 1, 2)),
        ((128, 16, None), 2, (128, 16, 4, 2)),
        ((128, None, 4), 2, (128, 16, 4, 2)),
        ((None, 16, None), 2, (32, 16, 1, 2)),
        ((None, 16, 4), 2, (128, 16, 4, 2)),
        ((128, 16, 4), 2, (128, 16, 4, 2)),
    ],
)
def test_missing_batch_sizes_follow_from_the_others(
    given: tuple[int | None, int | None, int | None], ranks: int, expected: tuple[int, ...]
) -> None:
    assert divide_batch(*given, ranks=ranks) == Batches(*expected)


@pytest.mark.parametrize(
    ("given", "ranks", "near"),
    [
        ((4096, 512, None), 3, "4608"),
        ((100, None, None), 3, "99"),
        ((100, None, 8), 1, "96"),
        ((128, 16, 3), 2, "96"),
        ((8, 16, None), 1, "16"),
        ((2, None, None), 4, "4"),
    ],
)
def test_batch_sizes_that_do_not_divide_are_refused_with_one_that_would(
    given: tuple[int | None, int | None, int | None], ranks: int, near: str
) -> None:
    with pytest.raises(ConfigError, match=f"train_batch_size={near}$") as caught:
        divide_batch(*given, ranks=ranks)
    assert str(given[0]) in str(caught.value)
    batch = divide_batch(int(near), *given[1:], ranks=ranks)  # the advice works
    assert batch.batch_global == int(near)


def test_without_any_size_both_keys_are_named() -> None:
    with pytest.raises(ConfigError, match="train_batch_size or train_micro_batch_size_per_gpu"):
        divide_batch(None, None, 4, ranks=1)


def test_gradient_clipping_must_be_explicit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"would clip at 1\.0"):
        read(tmp_path, {"train_batch_size": 64})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"train_bach_size": 3}, ["train_bach_size", "'train_batch_size'"]),
        ({"zero_optimization": {"reduce_bucket": 3}}, ["'reduce_bucket_size'"]),
        ({"optimizer": {"type": "LARS"}}, ["optim.name", "--set optim.lr=0.3"]),
        ({"scheduler": {}}, ["optim.warmup_epochs"]),
        ({"amp": {}}, ["amp", "removed"]),
        ({"sparse_gradients": True}, ["sparse_gradients", "removed"]),
        ({"elasticity": {}}, ["elasticity", "removed"]),
        ({"tensorboard": {}}, ["metrics.jsonl"]),
        ({"zero_optimization": {"stage": 3}}, ["stage 3", "0, 1 or 2"]),
        ({"zero_optimization": {"stage": "3"}}, ["stage", "without quotes", "got '3'"]),
        ({"zero_optimization": {"contiguous_gradients": "no"}}, ["'no' is neither true nor false"]),
        ({"zero_optimization": {"overlap_comm": "on"}}, ["'on' is neither true nor false"]),
        ({"zero_optimization": {"overlap_comm": 0}}, ["0 is neither true nor false"]),
        ({"zero_optimization": True}, ['{"stage": 1}']),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, ["0.2 GB"]),
        ({"zero_optimization": {"round_robin_gradients": True}}, ["flat buffer"]),
        ({"zero_optimization": {"overlap_comm": True}}, ["races"]),
        ({"zero_optimization": {"contiguous_gradients": False}}, ["skipped the reduction"]),
        ({"zero_optimization": {"stage3_max_live_parameters": 1}}, ["stage 3"]),
        ({"torch_autocast": {"enabled": True, "dtype": "int8"}}, ["int8", "bfloat16"]),
        (
            {"torch_autocast": {"lower_precision_safe_modules": ["torch.nn.Linear"]}},
            ["communication_data_type"],
        ),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, ["bf16 and fp16"]),
        ({"fp16": {"enabled": True, "auto_cast": True}}, ["auto_cast"]),
        ({"fp16": {"enabled": True}, "gradient_clipping": 1.0}, ["loss scale", "bf16"]),
        ({"train_batch_size": "auto"}, ["train_batch_size", "'auto'"]),
        (
            {"gradient_clipping": 1.0, "zero_optimization": {"compute_grad_norm": False}},
            ["compute_grad_norm"],
        ),
    ],
)
def test_refusals_name_the_key_and_what_to_do(
    tmp_path: Path, tree: dict[str, Any], words: list[str]
) -> None:
    message = refusal(tmp_path, tree)
    assert "engine.json" in message
    for word in words:
        assert word in message


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text('{"train_batch_size": 8, "gradient_clipping": 0, "train_batch_size": 16}')
    with pytest.raises(ConfigError, match="'train_batch_size' stands twice"):
        read_engine_file(path)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_every_name_of_a_number_format_is_taken(tmp_path: Path, dtype: str) -> None:
    tree = {**MINIMAL, "torch_autocast": {"enabled": True, "dtype": dtype}}
    assert settle(read(tmp_path, tree), ranks=1, source="x").precision == _DTYPES[dtype]


@pytest.mark.parametrize("size", ["5e8", "500000000", "5.0e8", "'5e8'"])
def test_sizes_are_taken_as_deepspeeds_own_examples_write_them(tmp_path: Path, size: str) -> None:
    path = tmp_path / "engine.json"
    path.write_text(
        f"{{gradient_clipping: 0, zero_optimization: {{reduce_bucket_size: {size}\n}}}}"
    )
    if size.startswith("'"):
        with pytest.raises(ConfigError, match="reduce_bucket_size"):
            read_engine_file(path)
    else:
        assert read_engine_file(path).zero_optimization.reduce_bucket_size == 500_000_000


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("gradient_clipping=.inf", ["inf is not finite"]),
        ("gradient_clipping='nan'", ["gradient_clipping", "finite"]),
        ("gradient_clipping=-1", ["gradient_clipping", "greater than or equal to 0"]),
        ("train_batch_size=true", ["train_batch_size", "True is no number"]),
        ("train_batch_size=0", ["train_batch_size", "greater than or equal to 1"]),
        ("harl_fast.timeout_minutes=1e9", ["timeout_minutes", "less than or equal to"]),
        ("fp16.loss_scale=1e300", ["fp16.loss_scale", "less than or equal to"]),
        ("steps_per_print=" + "9" * 5000, ["steps_per_print", "5,000 digits"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_numbers_outside_their_range_are_refused(
    tmp_path: Path, override: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, MINIMAL, override)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_file_names_the_shipped_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"ds_configs/cpu\.json"):
        read_engine_file(Path("ds_configs/none.json"))


def test_overrides_reach_nested_keys_and_are_checked(tmp_path: Path) -> None:
    file = read(tmp_path, MINIMAL, "zero_optimization.stage=2", "train_batch_size=32")
    assert (file.zero_optimization.stage, file.train_batch_size) == (2, 32)
    assert "stage 3" in refusal(tmp_path, {}, "zero_optimization.stage=3")
    assert "key=value" in refusal(tmp_path, {}, "zero_optimization.stage")
    assert "does not fit" in refusal(tmp_path, {}, "train_batch_size.x=3")


def test_a_loss_scale_begins_no_lower_than_its_minimum(tmp_path: Path) -> None:
    least = "fp16.min_loss_scale=256"
    told = "fp16: min_loss_scale 256 is above 2 ^ initial_scale_power 7"
    assert told in refusal(tmp_path, {}, least, "fp16.initial_scale_power=7")
    assert read(tmp_path, MINIMAL, least, "fp16.initial_scale_power=8").fp16.min_loss_scale == 256
    constant = read(tmp_path, MINIMAL, least, "fp16.initial_scale_power=7", "fp16.loss_scale=64")
    assert constant.fp16.loss_scale == 64.0


@pytest.mark.parametrize(
    ("section", "precision"),
    [
        ({}, "fp32"),
        ({"bf16": {"enabled": True}}, "bf16"),
        ({"fp16": {"enabled": True, "initial_scale_power": 8}}, "fp16"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "bf16"),
        ({"torch_autocast": {"enabled": True, "dtype": "half"}}, "fp16"),
        ({"torch_autocast": {"enabled": False, "dtype": "half"}}, "fp32"),
        ({"torch_autocast": {"enabled": True}, "bf16": {"enabled": True}}, "bf16"),
    ],
)
def test_precision_sections_become_ours_and_leave_deepspeed_fp32(
    tmp_path: Path, section: dict[str, Any], precision: str
) -> None:
    config = settle(read(tmp_path, {**MINIMAL, **section}), ranks=1, source="x")
    assert config.precision == precision
    assert not {"bf16", "fp16", "torch_autocast", "harl_fast"} & set(config.deepspeed())


def test_the_resolved_record_reads_back_to_the_same(tmp_path: Path) -> None:
    tree = {**MINIMAL, "train_micro_batch_size_per_gpu": 8, "bf16": {"enabled": True}}
    config = settle(read(tmp_path, tree), ranks=2, source="x")
    again = settle(read(tmp_path, config.record()), ranks=2, source="x")
    assert again.record() == config.record()
    assert again.batches == Batches(64, 8, 4, 2)


@pytest.mark.parametrize(("clipping", "norm"), [(0.0, False), (1.0, True)])
def test_zeros_own_gradient_check_runs_only_where_it_clips(
    tmp_path: Path, clipping: float, norm: bool
) -> None:
    tree = {**MINIMAL, "gradient_clipping": clipping}
    file = read(tmp_path, {**tree, "zero_optimization": {"stage": 1}})
    config = settle(file, ranks=2, source="x").deepspeed()
    assert config["zero_optimization"]["compute_grad_norm"] is norm
    off = settle(read(tmp_path, tree), ranks=2, source="x").deepspeed()
    assert "compute_grad_norm" not in off["zero_optimization"]


def test_a_single_rank_runs_without_zeros_buffers_unless_the_file_insists(tmp_path: Path) -> None:
    file = read(tmp_path, {**MINIMAL, "zero_optimization": {"stage": 2}})
    alone, two = (settle(file, ranks=ranks, source="x") for ranks in (1, 2))
    stages = [c.deepspeed()["zero_optimization"]["stage"] for c in (alone, two)]
    assert (alone.stage, two.stage, stages) == (0, 2, [0, 2])
    assert alone.record()["zero_optimization"]["stage"] == 2  # the user's word, for later ranks
    kept = read(
        tmp_path, {**MINIMAL, "zero_optimization": {"stage": 2}}, "harl_fast.shard_one_rank=true"
    )
    assert settle(kept, ranks=1, source="x").stage == 2


def test_every_key_of_deepspeeds_own_schemas_is_supported_or_refused() -> None:
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    def refused(tree: dict[str, Any]) -> bool:
        try:
            refuse_keys(tree, where="x")
            validated(EngineFile, {**MINIMAL, **tree}, where="x")
        except ConfigError:
            return True
        return False

    zero = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(ZeroSection.model_fields) <= zero
    left = zero - set(ZeroSection.model_fields)
    assert [key for key in left if not refused({"zero_optimization": {key: None}})] == []
    assert set(Fp16Section.model_fields) == set(DeepSpeedFP16Config.model_fields)
    left = set(DeepSpeedBF16Config.model_fields) - set(Bf16Section.model_fields)
    assert [key for key in left if not refused({"bf16": {key: True}})] == []
    assert [key for key in _REMOVED_TOP_LEVEL_CONFIG_KEYS if not refused({key: {}})] == []


def test_deepspeed_itself_accepts_what_it_is_given(tmp_path: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    file = read(tmp_path, {**MINIMAL, "zero_optimization": {"stage": 2}})
    insists = file.model_copy(update={"harl_fast": Needs(shard_one_rank=True)})
    accepted = DeepSpeedConfig(settle(insists, ranks=1, source="x").deepspeed())
    assert accepted.zero_config.stage == 2
    assert accepted.train_micro_batch_size_per_gpu == 64
    assert accepted.gradient_clipping == 0.0
    assert accepted.zero_config.reduce_bucket_size == 20_000_000


def resumed(tmp_path: Path, *overrides: str, ranks: int = 1) -> tuple[EngineFile, str]:
    """Resume, with a plain file, a run of one rank that began with 48 images in bf16."""
    given, own = tmp_path / "given.json", tmp_path / "engine.json"
    given.write_text(json.dumps({**MINIMAL, "zero_optimization": {"stage": 2}}))
    begun = read_engine_file(given, overrides=["train_batch_size=48", "bf16.enabled=true"])
    stage = begun.model_copy(update={"zero_optimization": ZeroSection(stage=1)})
    own.write_text(json.dumps(settle(stage, ranks=1, source="x").record()))
    return run_engine_file(given, own=own, overrides=overrides, ranks=ranks)


def test_a_resumed_run_keeps_what_decides_its_result(tmp_path: Path) -> None:
    file, told = resumed(tmp_path)
    assert settle(file, ranks=1, source="x").batches == Batches(48, 48, 1, 1)
    assert file.bf16.enabled and file.zero_optimization.stage == 2  # the stage decides nothing
    assert "keeps its own train_batch_size, bf16 of" in told and "given.json" in told
    two, _ = resumed(tmp_path, ranks=2)
    assert settle(two, ranks=2, source="x").batches == Batches(48, 24, 1, 2)


def test_overrides_of_a_resumed_run_reach_the_comparison(tmp_path: Path) -> None:
    file, told = resumed(tmp_path, "train_batch_size=32")
    assert file.train_batch_size == 32 and "train_batch_size" not in told
    file, _ = resumed(tmp_path, "train_micro_batch_size_per_gpu=12")
    assert settle(file, ranks=1, source="x").batches == Batches(48, 12, 4, 1)


def test_a_damaged_engine_file_of_a_run_can_be_deleted(tmp_path: Path) -> None:
    given, own = tmp_path / "given.json", tmp_path / "engine.json"
    given.write_text(json.dumps(MINIMAL))
    own.write_text("{")
    with pytest.raises(ConfigError, match=r"engine\.json.*delete it"):
        run_engine_file(given, own=own, overrides=(), ranks=1)
    own.unlink()
    assert run_engine_file(given, own=own, overrides=(), ranks=1)[0].train_batch_size == 64
