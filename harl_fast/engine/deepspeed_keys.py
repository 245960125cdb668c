"""Why harl_fast refuses some keys of DeepSpeed 0.19.8; all others it does not read are unknown."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from harl_fast.errors import ConfigError, shown

_REFUSED = {
    "amp compression_training curriculum_learning eigenvalue elasticity graph_harvesting nebula "
    "progressive_layer_drop quantize_training sparse_attention sparse_gradients": (
        "DeepSpeed 0.19 removed it. Delete the section"
    ),
    "comet csv_monitor tensorboard wandb": (
        "the run folder already holds tensorboard/ and metrics.jsonl, with more than DeepSpeed "
        "logs. Delete the section"
    ),
    "gradient_allreduce_op gradient_predivide_factor prescale_gradients": (
        "learning rates assume the plain mean over ranks. Delete it"
    ),
    "optimizer": (
        "the optimizer belongs to the method's YAML, section optim: optim.name, optim.lr, "
        "optim.weight_decay (--set optim.lr=0.3). Delete the section"
    ),
    "scheduler": (
        "the learning rate's schedule belongs to the method's YAML: optim.warmup_epochs, then a "
        "half cosine (--set optim.warmup_epochs=5). Delete the section"
    ),
    "bfloat16": "it is the old name. Write bf16",
    "managed_gradient_accumulation": "harl_fast counts micro steps with DeepSpeed. Delete it",
    "zero_optimization.*offload* zero_optimization.zenflow": (
        "the optimizer state takes 0.2 GB, so that moving it off the device only costs time. "
        "Delete it"
    ),
    "zero_optimization.stage3_* zero_optimization.zero_* zero_optimization.leaf_module "
    "zero_optimization.memory_efficient_linear zero_optimization.override_module_apply "
    "zero_optimization.sub_group_size": (
        "it belongs to stage 3, which harl_fast refuses. Delete it"
    ),
    "zero_optimization.elastic_checkpoint zero_optimization.load_from_fp32_weights": (
        "harl_fast's checkpoints fit any stage and rank count by themselves. Delete it"
    ),
    "bf16.immediate_grad_update": "gradients stay fp32. Delete it",
    "bf16.check_grad_overflow": "LARS rejects non-finite gradients by itself. Delete it",
}
"""Reasons by keys, with their sections and * for any letters."""

_NARROW = (
    "gradients are reduced in communication_data_type. Delete it, and set communication_data_type "
    'to "bf16" for a narrow reduction'
)
_VALUES: dict[tuple[str, str], tuple[Callable[[Any], bool], str]] = {
    ("zero_optimization", "stage"): (
        lambda stage: stage == 3,
        "it splits single tensors over ranks, while LARS and the target network need whole ones; "
        "at 35 M parameters it would only add traffic. Set stage to 0, 1 or 2",
    ),
    ("zero_optimization", "round_robin_gradients"): (
        bool,
        "it reorders the flat buffer in which LARS finds each layer. Set it to false",
    ),
    ("zero_optimization", "parameter_alignment"): (
        bool,
        "it pads the flat buffer that checkpoints are cut from. Set it to false",
    ),
    ("zero_optimization", "overlap_comm"): (
        bool,
        "it waits for the device after each backward pass and has a history of races, to hide a "
        "reduction of about a millisecond. Set it to false",
    ),
    ("zero_optimization", "contiguous_gradients"): (
        operator.not_,
        "that path skipped the reduction on CPU until 0.19.8 and is untested here. Set it to true",
    ),
    ("fp16", "auto_cast"): (bool, "views stay fp32 and autocast casts them. Set it to false"),
    ("fp16", "fp16_master_weights_and_grads"): (bool, "weights stay fp32. Set it to false"),
    ("bf16", "bf16_master_weights_and_grads"): (bool, "weights stay fp32. Set it to false"),
    ("bf16", "bf16_optimizer_states"): (bool, "optimizer states stay fp32. Set it to false"),
    ("torch_autocast", "lower_precision_safe_modules"): (bool, _NARROW),
}


def refuse_keys(tree: dict[str, Any], *, where: str) -> None:
    """Raise ConfigError for the first key of ``tree`` that DeepSpeed has and harl_fast refuses.

    where: the file's name. Keys unknown to DeepSpeed pass; the schema rejects them.
    """
    if isinstance(tree.get("zero_optimization"), bool):
        stage = int(tree["zero_optimization"])
        raise ConfigError(f'{where}: zero_optimization: write {{"stage": {stage}}}')
    for key in _dotted(tree):
        for patterns, reason in _REFUSED.items():
            if any(fnmatchcase(key, pattern) for pattern in patterns.split()):
                raise ConfigError(f"{where}: {key}: {reason}")


def _dotted(tree: dict[str, Any]) -> Iterator[str]:
    """Yield all keys, then those within sections as ``section.key``."""
    yield from tree
    for section, values in tree.items():
        if isinstance(values, dict):
            yield from (f"{section}.{key}" for key in values)


def refuse_values(tree: dict[str, Any], *, where: str) -> None:
    """Raise ConfigError for the first value of a checked file that harl_fast refuses."""
    for (section, key), (refused, why) in _VALUES.items():
        value = tree[section][key]
        if refused(value):
            raise ConfigError(f"{where}: {section}.{key} {shown(value)}: {why}")
