"""Why harl_fast refuses some keys of DeepSpeed 0.19.8; all others it does not read are unknown."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from harl_fast.errors import ConfigError, shown

_REMOVED = dict.fromkeys(
    (
        "amp",
        "compression_training",
        "curriculum_learning",
        "eigenvalue",
        "elasticity",
        "graph_harvesting",
        "nebula",
        "progressive_layer_drop",
        "quantize_training",
        "sparse_attention",
        "sparse_gradients",
    ),
    "DeepSpeed 0.19 removed it. Delete the section",
)
_OWN_LOGS = dict.fromkeys(
    ("comet", "csv_monitor", "tensorboard", "wandb"),
    "the run folder already holds tensorboard/ and metrics.jsonl, with more than DeepSpeed logs. "
    "Delete the section",
)
_MEAN = dict.fromkeys(
    ("gradient_allreduce_op", "gradient_predivide_factor", "prescale_gradients"),
    "learning rates assume the plain mean over ranks. Delete it",
)
_TOP: dict[str, str] = {
    **_REMOVED,
    **_OWN_LOGS,
    **_MEAN,
    "optimizer": "the optimizer belongs to the method's YAML, section optim: optim.name, optim.lr, "
    "optim.weight_decay (--set optim.lr=0.3). Delete the section",
    "scheduler": "the learning rate's schedule belongs to the method's YAML: optim.warmup_epochs, "
    "then a half cosine (--set optim.warmup_epochs=5). Delete the section",
    "bfloat16": "it is the old name. Write bf16",
    "managed_gradient_accumulation": "harl_fast counts micro steps with DeepSpeed. Delete it",
}

_OFFLOAD = "the optimizer state takes 0.2 GB, so that moving it off the device only costs time"
_STAGE3 = "it belongs to stage 3, which harl_fast refuses"
_ZERO: dict[str, str] = {
    **dict.fromkeys(
        (
            "cpu_offload",
            "cpu_offload_param",
            "cpu_offload_use_pin_memory",
            "offload_optimizer",
            "offload_param",
            "zenflow",
        ),
        _OFFLOAD + ". Delete it",
    ),
    **dict.fromkeys(
        (
            "leaf_module",
            "memory_efficient_linear",
            "override_module_apply",
            "sub_group_size",
            "zero_hpz_partition_size",
            "zero_quantized_gradients",
            "zero_quantized_nontrainable_weights",
            "zero_quantized_weights",
        ),
        _STAGE3 + ". Delete it",
    ),
    **dict.fromkeys(
        ("elastic_checkpoint", "load_from_fp32_weights"),
        "harl_fast's checkpoints fit any stage and rank count by themselves. Delete it",
    ),
}

_NARROW = (
    "gradients are reduced in communication_data_type. Delete it, and set communication_data_type "
    'to "bf16" for a narrow reduction'
)
_SECTIONS: dict[str, dict[str, str]] = {
    "zero_optimization": _ZERO,
    "bf16": {
        "immediate_grad_update": "gradients stay fp32. Delete it",
        "check_grad_overflow": "LARS rejects non-finite gradients by itself. Delete it",
    },
}

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
    for key in tree:
        if key in _TOP:
            raise ConfigError(f"{where}: {key}: {_TOP[key]}")
    if isinstance(tree.get("zero_optimization"), bool):
        stage = int(tree["zero_optimization"])
        raise ConfigError(f'{where}: zero_optimization: write {{"stage": {stage}}}')
    for section, values in tree.items():
        if not isinstance(values, dict):
            continue
        for key in values:
            reason = _SECTIONS.get(section, {}).get(key)
            if section == "zero_optimization" and key.startswith("stage3_"):
                reason = _STAGE3 + ". Delete it"
            if reason:
                raise ConfigError(f"{where}: {section}.{key}: {reason}")


def refuse_values(tree: dict[str, Any], *, where: str) -> None:
    """Raise ConfigError for the first value of a checked file that harl_fast refuses."""
    for (section, key), (refused, why) in _VALUES.items():
        value = tree[section][key]
        if refused(value):
            raise ConfigError(f"{where}: {section}.{key} {shown(value)}: {why}")
