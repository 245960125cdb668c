"""The configuration of fine-tuning and of linear evaluation with augmentation: presets and flags.

Keys are SimCLR's flags (google-research/simclr, `run.py`), so that its recipes can be copied.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harl_fast.config import (
    LARGEST_PX,
    SMALLEST_PX,
    CropShare,
    Deviation,
    ModelConfig,
    Ratio,
    RecordingConfig,
    Share,
    ViewConfig,
)
from harl_fast.errors import ConfigError, nearest, shown
from harl_fast.files import local_path
from harl_fast.options import SEED_MAX, checked, number, whole_number
from harl_fast.section import Count, Section, blamed, override, validated
from harl_fast.textfile import parse_yaml, read_yaml

PRESETS = Path(__file__).parent / "configs" / "finetune"
LINEAR_PRESETS = {
    "seed-readme": "seed-linear-imagenet",
    "byol": "linear-byol",
    "harl-repo": "linear-harl-repo",
}
"""What ``--protocol imagenet --preset NAME`` means among `presets`."""
SYNONYMS = {
    **dict.fromkeys(("lr", "base_lr"), "learning_rate"),
    **dict.fromkeys(("wd",), "weight_decay"),
    **dict.fromkeys(("batch_size", "batch"), "train_batch_size"),
    **dict.fromkeys(("epochs",), "train_epochs"),
    **dict.fromkeys(("steps",), "train_steps"),
    **dict.fromkeys(("size_px",), "image_size"),
    **dict.fromkeys(("workers", "num_workers"), "data.workers"),
}
"""What people call keys that have another name or place here."""
_NO_TPU = "there are no TPUs here, --deepspeed_config says what runs where"
REFUSED = {
    **dict.fromkeys(("use_tpu", "tpu_name", "tpu_zone", "gcp_project", "master"), ("", _NO_TPU)),
    "dataset": (".*subset", "--subset takes a file of names, or a share such as 1%"),
    **dict.fromkeys(("sk_ratio", "se_ratio"), (r"(?!0*\.?0*$)", "no network here has it")),
}
"""Flags of the reference that cannot be followed, with the values (regular expressions) for which
that is so, and what to do instead."""
LEFT_ASIDE = {
    **dict.fromkeys(("dataset", "train_split", "eval_split", "cache_dataset"), "--data says it"),
    **dict.fromkeys(
        ("train_summary_steps", "checkpoint_steps", "checkpoint_epochs", "keep_checkpoint_max"),
        "--set log.every_steps=N, log.checkpoint_epochs=N, log.keep_last=N",
    ),
    **dict.fromkeys(
        ("temperature", "hidden_norm", "use_blur", "color_jitter_strength", "proj_out_dim"),
        "of pretraining",
    ),
    **dict.fromkeys(("sk_ratio", "se_ratio", "proj_head_mode"), "the checkpoint says it"),
    **dict.fromkeys(("eval_steps", "eval_batch_size", "eval_name"), "all of val is judged"),
}
"""Flags of the reference that need no counterpart, and why."""

Rate = Annotated[float, Field(ge=0.0, le=1000.0)]
Epoch = Annotated[float, Field(gt=0.0, le=10**6)]


class ReadingConfig(Section):
    """How images are read and normalised."""

    crop_scale: tuple[CropShare, CropShare] = (0.08, 1.0)
    """Range of a training crop's share of the image area (SimCLR, `data_util.py`)."""
    crop_ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    """Range of its width over height."""
    flip_p: Share = 0.5
    """Probability of a horizontal flip."""
    centre: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Side of the central square that is evaluated, as a share of the image's shorter side. Left
    out, 0.875, or all of it up to 32 px."""
    mean: Annotated[tuple[Share, ...], Field(min_length=1, max_length=3)] | None = None
    """Mean of [0, 1] pixels per channel; left out, the checkpoint's."""
    std: Annotated[tuple[Deviation, ...], Field(min_length=1, max_length=3)] | None = None
    """Standard deviation per channel; left out, the checkpoint's."""
    order: Literal["random", "quasi"] = "random"
    """As of pretraining, and so are all below."""
    damaged: Literal["raise", "replace"] = "raise"
    """raise, or replace by the next sound sample."""
    check: Literal["checksum", "none"] = "checksum"
    """Whether stored bytes are compared with their checksum."""
    skip_broken: bool = False
    """Train without those containers of a set that are missing, cut short or changed."""
    workers: int = Field(0, ge=0, le=1024)
    """Decoding threads per rank; 0 divides this machine's cores among its ranks."""
    batches_ahead: int = Field(3, ge=1, le=16)
    """Batches prepared in advance."""


class FinetuneConfig(Section):
    """One fine-tuning, or linear evaluation, of a pretrained network. Defaults: SimCLR's 1 %."""

    seed: int = Field(0, ge=0, le=SEED_MAX)
    """Of initialisation, sample order and crops."""
    fine_tune_after_block: int = Field(-1, ge=-1, le=4)
    """-1 trains all; 0 freezes the stem, 1 to 3 up to that stage, 4 all but the heads."""
    ft_proj_selector: int = Field(0, ge=-1, le=9)
    """The head sits on: 0 the pooled features, k the projector's k-th hidden layer, -1 its output.
    """
    num_proj_layers: int | None = Field(None, ge=0, le=10)
    """Layers of the checkpoint's projector; another number is an error."""
    variable_schema: str = Field("(?!global_step)", max_length=1000)
    """Regular expression; what it matches from the start of backbone.*, head_contrastive.* or
    head_supervised.* is loaded."""
    zero_init_logits_layer: bool = True
    """Start the head at 0; else at N(0, 0.01), with biases of 0."""
    global_bn: bool = True
    """Trained BatchNorm layers take their statistics over all ranks."""
    optimizer: Literal["lars", "momentum", "adam", "adamw"] = "lars"
    """momentum is SGD with Nesterov's momentum; lars adapts neither head, biases nor norm layers.
    """
    learning_rate: Annotated[float, Field(gt=0.0, le=1000.0)] = 0.005
    """Base rate before scaling by the global batch."""
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = "sqrt"
    """linear: x batch / 256; sqrt: x sqrt(batch)."""
    head_lr_mult: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    """Factor of the heads' rate."""
    head_lr_grid: Annotated[tuple[Rate, ...], Field(min_length=1, max_length=64)] = (1.0,)
    """Further factors, one head for each: trained side by side; the best on held-out images counts.
    """
    hold_out: int = Field(0, ge=0, le=10**6)
    """Most training images, and at most a tenth, that are held out to choose the head by."""
    lr_steps: Annotated[tuple[Epoch, ...], Field(max_length=16)] = ()
    """Epochs at which the rate falls to a tenth, in place of the half cosine to 0."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Of lars and momentum."""
    weight_decay: Share = 0.0
    """Of weights, the head's included; never of biases and norm layers."""
    warmup_epochs: Annotated[float, Field(ge=0.0, le=10**6)] = 0.0
    """Epochs over which the rate rises from 0."""
    train_epochs: int = Field(60, ge=1, le=10**6)
    """Passes over the training images."""
    train_steps: int = Field(0, ge=0, le=10**9)
    """Optimizer steps in place of epochs; 0: by epochs."""
    train_batch_size: Count = 1024
    """Images of an optimizer step over all ranks."""
    image_size: int | None = Field(None, ge=SMALLEST_PX, le=LARGEST_PX)
    """Side of the images in pixels; left out, the pretraining's."""
    random: bool = False
    """Start from a fresh network of the checkpoint's kind, the baseline."""
    subset: str = Field("", max_length=4096)
    """Train on these alone: a file with one name per line, a share such as 1%, or 5-per-class."""
    subset_seed: int = Field(0, ge=0, le=SEED_MAX)
    """Of a share's draw."""
    data: ReadingConfig = ReadingConfig()
    log: RecordingConfig = RecordingConfig()
    model: ModelConfig | None = None
    """The network, as the checkpoint says; written into the resolved copy."""

    @model_validator(mode="after")
    def _fits(self) -> FinetuneConfig:
        if not self.train_steps and self.warmup_epochs >= self.train_epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} leaves none of train_epochs "
                f"{self.train_epochs}; shorten the warm-up or train longer"
            )
        if list(self.lr_steps) != sorted(set(self.lr_steps)):
            raise ValueError(f"lr_steps {list(self.lr_steps)}: give epochs in ascending order")
        if len(self.head_lr_grid) > 1 and not self.hold_out:
            raise ValueError(
                f"head_lr_grid has {len(self.head_lr_grid)} heads and hold_out is 0: hold training "
                f"images out to choose one of them by, such as hold_out: 10000"
            )
        if len(self.head_lr_grid) > 1 and self.fine_tune_after_block != 4:
            raise ValueError(
                f"head_lr_grid has {len(self.head_lr_grid)} heads, which share a network only if "
                f"it is frozen: set fine_tune_after_block to 4"
            )
        return self

    def view(self) -> ViewConfig:
        """Return the training crop: flips, and no colouring, as SimCLR does it."""
        return ViewConfig(
            size_px=self.image_size or 224,
            scale=self.data.crop_scale,
            ratio=self.data.crop_ratio,
            flip_p=self.data.flip_p,
            jitter_p=0.0,
            gray_p=0.0,
            blur_p=0.0,
        )


def presets() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_finetuning(
    name: str, *, flags: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> FinetuneConfig:
    """Return the checked configuration of a preset's name or a YAML file.

    flags: values by key, which replace the file's. overrides: ``section.key=value``. Raises
    ConfigError naming the file, the key, the value and the nearest valid key.
    """
    path = PRESETS / f"{name}.yaml" if name in presets() else local_path(name)
    if not os.path.exists(path):
        raise ConfigError(
            f"preset {shown(name)} is neither a file nor one of {', '.join(presets())}"
            f"{nearest(name, presets())}"
        )
    return _checked(read_yaml(path), flags or {}, overrides, where=str(path))


def change_finetuning(
    config: FinetuneConfig, *, flags: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> FinetuneConfig:
    """Return a configuration with values replaced, see `load_finetuning`. Raises ConfigError."""
    return _checked(config.model_dump(mode="json"), flags or {}, overrides, where="configuration")


def _checked(
    tree: dict[str, Any], flags: Mapping[str, Any], overrides: Sequence[str], *, where: str
) -> FinetuneConfig:
    def changed(keys: Collection[str], texts: Sequence[str], where: str) -> FinetuneConfig:
        other = {**copy.deepcopy(tree), **{key: flags[key] for key in keys}}
        for text in texts:
            override(other, text, option="--set")
        config: FinetuneConfig = validated(FinetuneConfig, other, where=where, synonyms=SYNONYMS)
        return config

    try:
        return changed(flags, overrides, where)
    except ConfigError:
        changed((), (), where)
        of_flags = {f"--{key} {shown(value)}": key for key, value in flags.items()}
        of_texts = {f"--set {shown(text)}": text for text in overrides}

        def try_alone(option: str) -> FinetuneConfig:
            if option in of_flags:
                return changed([of_flags[option]], (), "")
            return changed((), [of_texts[option]], "")

        wrong = blamed([*of_flags, *of_texts], try_alone)
        return changed(flags, overrides, " ".join([where, *wrong]))


def reading(values: Mapping[str, Any]) -> list[str]:
    """Return overrides that set keys of `ReadingConfig` to values other than None."""
    return [f"data.{key}={json.dumps(value)}" for key, value in values.items() if value is not None]


def flag_keys() -> dict[str, str]:
    """Return the keys that are flags of their own, with a line of help each."""
    return {
        name: " ".join((field.description or "").split())
        for name, field in FinetuneConfig.model_fields.items()
        if name not in ("data", "log", "model")
    }


def flag_options() -> dict[str, dict[str, Any]]:
    """Return what argparse is to know of each flag; its value's name is ``flag:KEY``.

    Those of the reference that are checked or left aside are among them.
    """
    found = _reference_options()
    for key, text in flag_keys().items():
        switch = FinetuneConfig.model_fields[key].annotation is bool
        found[f"--{key.replace('_', '-')}"] = {
            "dest": f"flag:{key}",
            "type": checked(functools.partial(flag_value, key)),
            "metavar": "V",
            "help": text.replace("%", "%%"),
            **({"nargs": "?", "const": True} if switch else {}),
        }
    return found


def flag_value(key: str, text: str) -> Any:
    """Return what the text of a flag means: True and False, numbers, or for texts the text itself.

    Raises ConfigError for what is no YAML.
    """
    if FinetuneConfig.model_fields[key].annotation is str:
        return text
    if "," in text and not text.startswith("["):
        text = f"[{text}]"
    return parse_yaml(text, where=f"--{key.replace('_', '-')}")


def _reference_options() -> dict[str, dict[str, Any]]:
    """Return what argparse is to know of the reference's flags that are checked or left aside."""
    found: dict[str, dict[str, Any]] = {
        f"--{name.replace('_', '-')}": {"nargs": "?", "const": ""} for name in LEFT_ASIDE
    }
    found["--resnet-depth"] = {"type": whole_number(1, 10_000)}
    found["--width-multiplier"] = {"type": number(0.01, 100.0)}
    return {flag: {"help": argparse.SUPPRESS, **settings} for flag, settings in found.items()}


def network_asked(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return which network the reference's flags ask for, by key of section ``model``."""
    depth, width = args["resnet_depth"], args["width_multiplier"]
    found = {"arch": None if depth is None else f"resnet{depth}", "width": width}
    return {key: value for key, value in found.items() if value is not None}


def left_aside(args: Mapping[str, Any]) -> str:
    """Return a note on those of the reference's flags that were given and are left aside, or ""."""
    given: dict[str, list[str]] = {}
    for name, why in LEFT_ASIDE.items():
        if args[name] is not None:
            given.setdefault(why, []).append(f"--{name}")
    told = "; ".join(f"{', '.join(names)} ({why})" for why, names in given.items())
    return told and f"note: left aside: {told}"


def normalised(words: Sequence[str]) -> list[str]:
    """Return a command line's words with the reference's spelling of flags turned into ours.

    ``--zero_init_logits_layer=True`` becomes ``--zero-init-logits-layer=True``; values and the
    engine's ``--deepspeed_config`` and ``--local_rank`` stay. Raises ConfigError for all flags of
    `REFUSED` together.
    """
    found, refused = [], dict[str, list[str]]()
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, mark, value = word.partition("=")
        bare = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and bare in REFUSED:
            values, remedy = REFUSED[bare]
            if re.match(values, value if mark else following):
                refused.setdefault(remedy, []).append(word if mark else name)
        if name.startswith("--") and bare not in ("deepspeed_config", "local_rank"):
            word = f"--{bare.replace('_', '-')}{mark}{value}"
        found.append(word)
    if refused:
        told = [f"{', '.join(map(shown, flags))}: {remedy}" for remedy, flags in refused.items()]
        raise ConfigError(f"{'; '.join(told)}. Leave all of these out")
    return found
