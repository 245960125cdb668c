"""DeepSpeed's JSON: every key checked, batch sizes made exact, the rest handed on or refused.

DeepSpeed 0.19.8 ignores unknown top-level keys, clips gradients when told nothing, and casts
BatchNorm with its bf16 and fp16 sections. So the file is read here first: what remains for
DeepSpeed is a plain fp32 engine, and the precision the user asked for is `engine.precision`'s.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harl_fast.engine.deepspeed_keys import refuse_keys, refuse_values
from harl_fast.errors import ConfigError, shown
from harl_fast.section import Count, Section, override, validated
from harl_fast.textfile import read_json

Precision = Literal["fp32", "bf16", "fp16"]

FREE_KEYS = (
    "zero_optimization",
    "zero_allow_untested_optimizer",
    "gradient_accumulation_steps",
    "steps_per_print",
    "timers",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "harl_fast",
)
"""Keys that a resumed run may change: they change the order of sums at most."""
_DIVISION = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")

_SYNONYMS = {
    "batch_size": "train_batch_size",
    "global_batch_size": "train_batch_size",
    "micro_batch_size": "train_micro_batch_size_per_gpu",
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "max_grad_norm": "gradient_clipping",
}
"""What other programs call a key."""

_DTYPES: dict[str, Precision] = {
    **dict.fromkeys(("bfloat16", "bf16", "torch.bfloat16"), "bf16"),
    **dict.fromkeys(("float16", "fp16", "half", "torch.float16"), "fp16"),
    **dict.fromkeys(("float32", "fp32", "float", "torch.float32"), "fp32"),
}


class ZeroSection(Section):
    """``zero_optimization``, the keys that stages 0 to 2 read."""

    stage: int = Field(0, ge=0, le=3)
    reduce_bucket_size: Annotated[int, Field(ge=1, le=10**11)] = 20_000_000
    """Elements of one gradient reduction; above the largest tensor (8.4 M in ResNet-50's heads).
    DeepSpeed's own default, 5e8, would take 2 GB."""
    allgather_bucket_size: Annotated[int, Field(ge=2, le=10**11, multiple_of=2)] = 20_000_000
    allgather_partitions: bool = True
    use_multi_rank_bucket_allreduce: bool = True
    reduce_scatter: bool = True
    contiguous_gradients: bool = True
    overlap_comm: bool = False
    round_robin_gradients: bool = False
    parameter_alignment: bool = False
    ignore_unused_parameters: bool = True
    compute_grad_norm: bool | None = None
    """None: only if gradients are clipped. ZeRO's look at the norm waits for the device; the step
    itself finds non-finite gradients without."""


class AutocastSection(Section):
    """``torch_autocast``."""

    enabled: bool = False
    dtype: str = "bfloat16"
    lower_precision_safe_modules: tuple[str, ...] = ()
    """Empty: gradients are reduced in ``communication_data_type``."""


class Bf16Section(Section):
    """``bf16``; the other keys are accepted as false only."""

    enabled: bool = False
    bf16_master_weights_and_grads: bool = False
    bf16_optimizer_states: bool = False


class Fp16Section(Section):
    """``fp16``, with DeepSpeed's meaning of each key."""

    enabled: bool = False
    loss_scale: float = Field(0.0, ge=0.0, le=2.0**32)
    """Constant factor of the loss; 0 adapts it."""
    initial_scale_power: int = Field(16, ge=0, le=32)
    loss_scale_window: Count = 1000
    """Steps without overflow before the factor doubles."""
    hysteresis: Count = 2
    """Overflows before the factor halves."""
    consecutive_hysteresis: bool = False
    """Forget earlier overflows at each good step, not only when the factor doubles."""
    min_loss_scale: Annotated[int, Field(ge=1, le=2**32)] = 1
    auto_cast: bool = False
    fp16_master_weights_and_grads: bool = False
    """Accepted as false only."""

    @model_validator(mode="after")
    def _ordered(self) -> Fp16Section:
        least, power = self.min_loss_scale, self.initial_scale_power
        if not self.loss_scale and least > 2**power:
            raise ValueError(f"min_loss_scale {least} is above 2 ^ initial_scale_power {power}")
        return self


class ThroughputSection(Section):
    """``timers.throughput``; off, since it waits for the device twice per step."""

    enabled: bool = False
    synchronized: bool = False


class TimersSection(Section):
    """``timers``."""

    throughput: ThroughputSection = ThroughputSection()


class Needs(Section):
    """``harl_fast``: what this file was made for. DeepSpeed does not see it."""

    ranks: Count | None = None
    """Processes over all machines."""
    device: Literal["any", "cpu", "cuda"] = "any"
    memory_gb: float = Field(0.0, ge=0.0, le=10**6)
    """Memory of each device, in 10^9 bytes."""
    instead: str = "ds_configs/cpu.json"
    """File to name on a machine that does not fit."""
    timeout_minutes: float = Field(10.0, gt=0.0, le=10**5)
    """Longest wait of a rank for the others before the run fails."""
    shard_one_rank: bool = False
    """Keep ZeRO's flat buffers on a single rank too. They shard nothing there, and cost copies of
    all gradients and weights each step, and channels-last weights: stage 0 runs instead."""


class EngineFile(Section):
    """The keys of the JSON that harl_fast supports."""

    train_batch_size: Count | None = None
    train_micro_batch_size_per_gpu: Count | None = None
    gradient_accumulation_steps: Count | None = None
    gradient_clipping: float = Field(ge=0.0, le=10**6)
    """Required: left out, DeepSpeed clips at 1.0. Write 0.0 for no clipping."""
    steps_per_print: Count | None = None
    zero_optimization: ZeroSection = ZeroSection()
    zero_allow_untested_optimizer: Literal[True] = True
    communication_data_type: Literal["fp32", "bf16"] = "fp32"
    """Number format of the gradient reduction."""
    torch_autocast: AutocastSection = AutocastSection()
    bf16: Bf16Section = Bf16Section()
    fp16: Fp16Section = Fp16Section()
    timers: TimersSection = TimersSection()
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    dump_state: bool = False
    harl_fast: Needs = Needs()


@dataclass(frozen=True)
class Batches:
    """How one optimizer step's samples are divided; the product of the last three is the first."""

    batch_global: int
    batch_micro: int
    accumulation: int
    ranks: int

    def __str__(self) -> str:
        return (
            f"global batch {self.batch_global} = micro batch {self.batch_micro} x "
            f"accumulation {self.accumulation} x {self.ranks} rank{'s' * (self.ranks > 1)}"
        )


@dataclass(frozen=True)
class EngineConfig:
    """A checked file, settled for a number of ranks."""

    source: str
    """Where it came from, for messages."""
    file: EngineFile
    batches: Batches
    precision: Precision

    @property
    def stage(self) -> int:
        """The ZeRO stage that runs: 0 on one rank, unless the file insists."""
        if self.batches.ranks == 1 and not self.file.harl_fast.shard_one_rank:
            return 0
        return self.file.zero_optimization.stage

    def record(self) -> dict[str, Any]:
        """Return the resolved file as JSON that `read_engine_file` accepts again."""
        sizes = {
            "train_batch_size": self.batches.batch_global,
            "train_micro_batch_size_per_gpu": self.batches.batch_micro,
            "gradient_accumulation_steps": self.batches.accumulation,
        }
        return {**self.file.model_dump(mode="json", exclude_none=True), **sizes}

    def deepspeed(self) -> dict[str, Any]:
        """Return what `deepspeed.initialize` takes as ``config``: an fp32 engine."""
        config = self.record()
        for ours in ("harl_fast", "torch_autocast", "bf16", "fp16"):
            del config[ours]
        config["zero_optimization"]["stage"] = self.stage
        if self.stage > 0:
            config["zero_optimization"].setdefault(
                "compute_grad_norm", self.file.gradient_clipping > 0.0
            )
        return config


def read_engine_file(path: Path, *, overrides: Sequence[str] = ()) -> EngineFile:
    """Return the checked content of a DeepSpeed JSON (Hjson: comments are allowed).

    overrides: ``key=value`` with dots between levels and YAML values. Raises ConfigError naming
    the file, the key, and the nearest valid key or the place where the setting lives now.
    """
    if not os.path.exists(path):
        near = sorted(str(file) for file in Path("ds_configs").glob("*.json"))
        raise ConfigError(
            f"--deepspeed_config {path} does not exist; shipped files: {', '.join(near) or 'none'}"
        )
    return _checked(read_json(path, hjson_too=True), overrides, where=str(path))


def run_engine_file(
    path: Path, *, own: Path | None, overrides: Sequence[str], ranks: int
) -> tuple[EngineFile, str]:
    """Return the engine file of a run, and what is to be told of it.

    own: the engine.json of a run that is resumed; None for a new one. It decides what touches the
    run's result, so that overrides of the first start need not be given again; the rest comes from
    ``path``. On another number of ranks the micro batch follows from ``path`` too. Raises
    ConfigError.
    """
    if own is None or not own.exists():
        return read_engine_file(path, overrides=overrides), ""
    try:
        kept = _checked(read_json(own), (), where=str(own)).model_dump(
            mode="json", exclude_none=True
        )
    except ConfigError as error:
        *lines, last = error.args
        instead = "delete it, and give --engine-set as at the run's start"
        raise ConfigError(*lines, f"{last}. If it is damaged, {instead}") from error
    micro, steps = (kept.get(key, 0) for key in _DIVISION)
    named = {text.partition("=")[0].partition(".")[0] for text in overrides}
    resized = not named.isdisjoint({"train_batch_size", *_DIVISION})
    if resized or kept.get("train_batch_size") != micro * steps * ranks:
        for key in _DIVISION:
            kept.pop(key, None)
    given = read_engine_file(path).model_dump(mode="json", exclude_none=True)
    kept = {key: value for key, value in kept.items() if key not in set(FREE_KEYS) - {*_DIVISION}}
    file = _checked({**given, **kept}, overrides, where=f"{path} with {own}")
    other = [key for key in kept if key not in named and given.get(key, kept[key]) != kept[key]]
    if not other:
        return file, ""
    return file, f"the run keeps its own {', '.join(other)} of {own}, not that of {path}"


def _checked(tree: dict[str, Any], overrides: Sequence[str], *, where: str) -> EngineFile:
    for text in overrides:
        override(tree, text, option="--engine-set")
    refuse_keys(tree, where=where)
    if "gradient_clipping" not in tree:
        raise ConfigError(
            f"{where}: gradient_clipping is not set, and DeepSpeed would clip at 1.0. Write "
            f'"gradient_clipping": 0.0 for none'
        )
    file: EngineFile = validated(EngineFile, tree, where=where, synonyms=_SYNONYMS)
    refuse_values(file.model_dump(), where=where)
    return file


def settle(file: EngineFile, *, ranks: int, source: str) -> EngineConfig:
    """Return the file settled for ``ranks`` processes, or raise ConfigError with the numbers."""
    batches = divide_batch(
        file.train_batch_size,
        file.train_micro_batch_size_per_gpu,
        file.gradient_accumulation_steps,
        ranks=ranks,
        source=source,
    )
    precision = _precision(file, source=source)
    if precision == "fp16" and file.gradient_clipping > 0.0:
        raise ConfigError(
            f"{source}: fp16 with gradient_clipping {file.gradient_clipping}: DeepSpeed would clip "
            f"gradients that still carry the loss scale. Set gradient_clipping to 0.0 or use bf16"
        )
    if file.zero_optimization.compute_grad_norm is False and file.gradient_clipping > 0.0:
        raise ConfigError(
            f"{source}: gradient_clipping {file.gradient_clipping} needs the norm that "
            f"zero_optimization.compute_grad_norm false leaves out; remove one of the two"
        )
    return EngineConfig(source=source, file=file, batches=batches, precision=precision)


def divide_batch(
    batch_global: int | None,
    batch_micro: int | None,
    accumulation: int | None,
    *,
    ranks: int,
    source: str = "batch sizes",
) -> Batches:
    """Return all batch numbers from those given, or raise ConfigError if they do not divide.

    Without an accumulation, it follows from the other two; with only one size given it is 1.
    """
    if batch_global is None and batch_micro is None:
        raise ConfigError(f"{source}: set train_batch_size or train_micro_batch_size_per_gpu")
    if batch_global is None:
        assert batch_micro is not None
        return Batches(
            batch_micro * (accumulation or 1) * ranks, batch_micro, accumulation or 1, ranks
        )
    part = ranks * (batch_micro or accumulation or 1)
    quotient, rest = divmod(batch_global, part)
    micro = quotient if batch_micro is None else batch_micro
    steps = (accumulation or 1) if batch_micro is None else quotient
    if rest or quotient == 0 or (accumulation is not None and steps != accumulation):
        given = {
            "train_micro_batch_size_per_gpu": batch_micro,
            "gradient_accumulation_steps": accumulation,
        }
        factors = " x ".join(f"{key} {value}" for key, value in given.items() if value)
        unit = ranks * (batch_micro or 1) * (accumulation or 1)
        near = max(unit, round(batch_global / unit) * unit)
        raise ConfigError(
            f"{source}: train_batch_size {batch_global} is not {factors + ' x ' if factors else ''}"
            f"{ranks} rank{'s' * (ranks > 1)} x a whole number; {near} would be. Change one of "
            f"them, e.g. --engine-set train_batch_size={near}"
        )
    return Batches(batch_global, micro, steps, ranks)


def with_batch(file: EngineFile, batch: int, *, ranks: int) -> EngineFile:
    """Return an engine file for another global batch: micro batches grow no larger than its own.

    That is, where it states none, what its global batch leaves for each rank.
    """
    if file.train_batch_size == batch:
        return file
    if batch % ranks:
        near = max(ranks, round(batch / ranks) * ranks)
        raise ConfigError(
            f"train_batch_size {batch} cannot be divided among {ranks} ranks: use "
            f"--train-batch-size {near}"
        )
    stated, steps = file.train_micro_batch_size_per_gpu, file.gradient_accumulation_steps
    most = stated or (file.train_batch_size or batch) // (ranks * (steps or 1))
    sizes = [size for size in range(1, batch // ranks + 1) if batch // ranks % size == 0]
    micro = max((size for size in sizes if size <= most), default=1)
    if stated is None and 2 * micro < most:  # of a batch that divides badly
        micro = next((size for size in sizes if size >= most), sizes[-1])
    update = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": None,
    }
    return file.model_copy(update=update)


def _precision(file: EngineFile, *, source: str) -> Precision:
    dtype = file.torch_autocast.dtype
    if dtype not in _DTYPES:
        raise ConfigError(
            f"{source}: torch_autocast.dtype {shown(dtype)}; use bfloat16, float16 or float32"
        )
    asked: dict[str, Precision] = {}
    if file.bf16.enabled:
        asked["bf16"] = "bf16"
    if file.fp16.enabled:
        asked["fp16"] = "fp16"
    if file.torch_autocast.enabled:
        asked["torch_autocast"] = _DTYPES[dtype]
    if len(set(asked.values())) > 1:
        raise ConfigError(
            f"{source}: {' and '.join(asked)} are enabled and disagree; enable one of them"
        )
    return next(iter(asked.values()), "fp32")
