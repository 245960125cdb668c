"""The method's configuration: YAML in, every key checked, the resolved copy out.

What the engine needs (batch sizes, precision, ZeRO) is DeepSpeed's own JSON, see `engine.config`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from harl_fast.errors import ConfigError, nearest, shown
from harl_fast.files import local_path
from harl_fast.options import crop_rule
from harl_fast.section import Count, Section, blamed, override, validated
from harl_fast.textfile import read_yaml

PRESETS = Path(__file__).parent / "configs"
SMALLEST_PX, LARGEST_PX = 8, 1024
"""Range of a view's side."""

_BATCH = "train_batch_size in the engine file (--engine-set train_batch_size=...)"
SYNONYMS = {
    **dict.fromkeys(("learning_rate", "base_lr"), "optim.lr"),
    **dict.fromkeys(("optimizer", "optimiser"), "optim.name"),
    **dict.fromkeys(("backbone", "encoder", "architecture"), "model.arch"),
    **dict.fromkeys(("size", "image_size", "crop_size"), "data.views.N.size_px"),
    **dict.fromkeys(("batch_size", "batch"), _BATCH),
    **dict.fromkeys(("num_workers", "workers"), "data.workers"),
    **dict.fromkeys(("weight_decay", "wd"), "optim.weight_decay"),
    **dict.fromkeys(("ema", "tau", "ema_momentum"), "target.tau_start"),
    **dict.fromkeys(("loss_type",), "loss.type"),
}
"""What people call keys that have another name or place here."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Width = Annotated[int, Field(ge=1, le=1 << 16)]
"""Units of a layer."""
CropShare = Annotated[float, Field(ge=1e-4, le=1.0)]
Ratio = Annotated[float, Field(ge=0.01, le=100.0)]
Sigma = Annotated[float, Field(ge=0.01, le=1000.0)]
Deviation = Annotated[float, Field(ge=0.01, le=1.0)]
ScheduleText = Annotated[str, BeforeValidator(lambda v: str(v) if type(v) in (int, float) else v)]
"""A value over the run as text; a plain number is one, too."""
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA_MEAN, LUMA_STD = (0.449,), (0.226,)
"""ImageNet's, and their means, which timm takes for one channel."""


class ViewConfig(Section):
    """How one view is cut and coloured. Defaults are BYOL's first view (BYOL, appendix B)."""

    size_px: int = Field(224, ge=SMALLEST_PX, le=LARGEST_PX)
    """Side of the square the network receives."""
    role: Literal["both", "online"] = "both"
    """online: the target network does not see the view."""
    scale: tuple[CropShare, CropShare] = (0.08, 1.0)
    """Range of the crop's share of the image area."""
    ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    """Range of the crop's width over height, drawn log-uniformly."""
    flip_p: Share = 0.5
    """Probability of a horizontal flip."""
    vflip_p: Share = 0.0
    """Probability of a vertical flip; HARL's PyTorch release uses 0.5, BYOL none."""
    crop: str = "random"
    """random; foreground>=T: of up to 5 crops the first whose share of foreground reaches T, else
    the last; background: of 5 the one with the least; center-on-foreground: about a point of it."""
    background_p: Share = 0.0
    """Probability that what the mask leaves out shows another sample's picture instead; views with
    hardly any foreground keep theirs."""
    jitter_p: Share = 0.8
    """Probability of colour jitter; its four operations come in a random order."""
    brightness: Annotated[float, Field(ge=0.0, le=1.0)] = 0.4
    """Half-width of the factor about 1 by which brightness is scaled."""
    contrast: Annotated[float, Field(ge=0.0, le=1.0)] = 0.4
    """The same for contrast, about the image's mean luminance."""
    saturation: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """The same for saturation, about each pixel's luminance."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    """Half-width of the hue's shift about 0, in turns of the colour circle."""
    gray_p: Share = 0.2
    """Probability of dropping the colour."""
    blur_p: Share = 1.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels of a 224 px view."""
    solarize_p: Share = 0.0
    """Probability of inverting all values of 0.5 and above."""
    augment: dict[str, Share] = Field({})
    """Further colour operations by name, each with its probability; they come after those above."""

    @model_validator(mode="after")
    def _ordered(self) -> ViewConfig:
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the first value {low} is above the second, {high}")
        crop_rule(self.crop)
        return self


class DataConfig(Section):
    """The loader and its views."""

    views: tuple[ViewConfig, ...] = (ViewConfig(), ViewConfig(blur_p=0.1, solarize_p=0.2))
    """The two policies T and T' (BYOL, appendix B: asymmetric blur and solarize), or more views."""
    size_schedule: ScheduleText = ""
    """Side of the views of role both by epoch: a number of pixels or steps:160,0.7:192,0.85:224
    with times as shares of all epochs; constant within an epoch. Views of role online keep their
    size_px, and all of them if this is empty."""
    order: Literal["random", "quasi"] = "random"
    """quasi: shuffled within a window that moves over the file, for sets larger than the RAM."""
    damaged: Literal["raise", "replace"] = "raise"
    """replace: a damaged sample is counted, and the next sound one takes its place."""
    check: Literal["checksum", "none"] = "checksum"
    """checksum: each sample's stored bytes are compared with the checksum taken when they were
    written, as they are read; a sample that differs is damaged."""
    skip_broken: bool = False
    """Train without those containers of a set that are missing, cut short or changed."""
    colour: Literal["auto", "loader", "device"] = "auto"
    """Who colours the views: the loader's threads, the device in batches, or what suits it."""
    mean: Annotated[tuple[Share, ...], Field(min_length=1, max_length=3)] = RGB_MEAN
    """Mean of [0, 1] pixels per channel (R, G, B), which is subtracted; under model.in_channels 1
    one value, by default 0.449."""
    std: Annotated[tuple[Deviation, ...], Field(min_length=1, max_length=3)] = RGB_STD
    """Standard deviation per channel, by which the rest is divided; one value, by default 0.226."""
    workers: int = Field(0, ge=0, le=1024)
    """Decoding threads per rank; 0 divides this machine's cores among its ranks."""
    batches_ahead: int = Field(3, ge=1, le=16)
    """Batches prepared in advance."""

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _of_unit_range(cls, values: Any) -> Any:
        given = values if isinstance(values, list | tuple) else ()
        if any(isinstance(value, int | float) and 1.0 < abs(value) <= 255.0 for value in given):
            raise ValueError(f"{shown(list(values))} go beyond 1, as bytes do: divide by 255")
        return values

    @field_validator("views")
    @classmethod
    def _matched(cls, views: tuple[ViewConfig, ...]) -> tuple[ViewConfig, ...]:
        roles = [view.role for view in views]
        both = roles.count("both")
        # A single one of role both would have no other view's target to be matched with.
        if both < 2 or len(views) > 16 or "online" in roles[:both]:
            raise ValueError(
                f"{len(views)} of roles {', '.join(roles) or 'none'}; give 2 to 16 views, first "
                f"two or more of role both, then those of role online"
            )
        return views


class ModelConfig(Section):
    """Encoder and heads."""

    arch: Annotated[str, Field(pattern=r"^[\w.:/-]{1,100}$")] = "resnet50"
    """resnet18, resnet34, resnet50, resnet101 or resnet152; timm:NAME, a network of timm whose
    `forward_features` gives a map; or a name that was added to `harl_fast.model.backbones`. The
    four keys from width on are the ResNets' alone."""
    in_channels: Literal[1, 3] = 3
    """Channels of the images: 3 (RGB), or 1: of greyscale sets the grey, of others the luma."""
    width: Annotated[float, Field(ge=1 / 8, le=16.0)] = 1.0
    """Multiplier of all channel counts."""
    stem: Literal["imagenet", "small", "small-s2", "small-pad2"] = "imagenet"
    """imagenet: 7x7 stride 2 and max-pool; small: 3x3 stride 1; small-s2: 3x3 stride 2; small-pad2:
    as small, padded by 2, as solo-learn has it."""
    last_stride: Literal[1, 2] = 2
    """Stride of the last stage; 1 doubles the side of the map that the masks weight."""
    zero_init_residual: bool = False
    """Start each residual branch at zero (its last BatchNorm's weight)."""
    projector_layers: Literal[2, 3] = 2
    """Linear layers of the projector."""
    projector_hidden: Width = 4096
    """Units of its hidden layers."""
    projector_out: Width = 512
    """Dimension of the projections, and of the predictions."""
    predictor_hidden: Width = 4096
    """Units of the predictor's hidden layer."""
    predictor_per: Literal["network", "role"] = "network"
    """role: views of role online have a predictor of their own."""
    sync_bn: Literal["none", "heads", "all"] = "none"
    """Which BatchNorm layers share statistics over ranks."""
    compile: bool = False
    """Compile backbone and heads with torch.compile."""


class LossConfig(Section):
    """Which regions are matched, and how masks weight the map."""

    type: Literal["byol", "f_loss", "f_loss+b_loss", "byol+f_loss", "byol+f_loss+b_loss"] = (
        "byol+f_loss"
    )
    """Which terms: the whole image (byol), foreground (f_loss), background (b_loss)."""
    alpha: ScheduleText = "cosine:0.6:1.0"
    """Foreground's share against background: a number, cosine:START:END or steps:V0,T1:V1,..."""
    beta: ScheduleText = "cosine:0.6:0.3"
    """The whole image's share against the regions, in the same forms."""
    mask: Literal["soft", "area", "any"] = "soft"
    """A cell's weight: its coverage; 1 if coverage >= mask_threshold; 1 if touched at all."""
    mask_threshold: Share = 0.5
    """Least coverage of a foreground cell under mask: area."""
    min_area: Annotated[float, Field(ge=0.0, lt=1.0)] = 1e-3
    """A region must cover more than this share of the map to enter the loss."""
    level: Annotated[int, Field(ge=1, le=4)] = 4
    """Stage of the network whose map foreground and background are pooled from; the whole image's
    is always the last. The cells of an earlier map see less of what surrounds them. Regions then
    have a projector and a predictor of their own, as wide as the others."""
    spread: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.0
    """Weight of VICReg's variance and covariance terms, which keep projections from falling onto
    few dimensions."""
    contrast: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.0
    """Weight of InfoNCE beside the distance, which short runs learn from sooner: each prediction is
    to find its own target projection among those of the micro batch."""
    temperature: Annotated[float, Field(ge=0.01, le=10.0)] = 0.2
    """Of InfoNCE's softmax over cosines."""
    extra: dict[str, Annotated[float, Field(ge=0.0, le=1000.0)]] = Field({})
    """Weights of further terms in `harl_fast.model.loss.LOSS_TERMS`, added to those of type."""

    @model_validator(mode="after")
    def _all_stages_learn(self) -> LossConfig:
        if self.level != 4 and not self.type.startswith("byol+"):
            raise ValueError(
                f"level {self.level} is for regions beside the whole image, by which the later "
                f"stages learn: choose type byol+f_loss or byol+f_loss+b_loss, not {self.type}"
            )
        return self


class TargetConfig(Section):
    """The moving average that makes the target network."""

    tau_start: Share = 0.996
    """Share of the old target kept at step 0 (BYOL: 0.97 / 0.99 / 0.99 / 0.996 for 40 / 100 / 300 /
    1000 epochs)."""
    tau_end: Share = 1.0
    """Share kept at the last step; the rise is a half cosine."""

    @model_validator(mode="after")
    def _ordered(self) -> TargetConfig:
        if self.tau_start > self.tau_end:
            raise ValueError(f"tau_start {self.tau_start} is above tau_end {self.tau_end}")
        return self


class OptimConfig(Section):
    """Optimizer and learning rate."""

    name: Literal["lars", "sgd", "adamw"] = "lars"
    """Which optimizer."""
    lr: Annotated[float, Field(gt=0.0, le=1000.0)] = 0.2
    """Base learning rate before scaling by the global batch; usual: 1e-4 to 1."""
    predictor_lr_scale: Annotated[float, Field(gt=0.0, le=1000.0)] = 1.0
    """Factor of the predictor's learning rate."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """linear: lr x batch / 256; sqrt: lr x sqrt(batch)."""
    warmup_epochs: Annotated[float, Field(ge=0.0, le=10**6)] = 10.0
    """Epochs over which the learning rate rises from 0; a half cosine to 0 follows."""
    weight_decay: Share = 1.5e-6
    """Applied to weights only, never to biases and norm layers."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Of LARS and SGD."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    trust: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-3
    """LARS trust coefficient."""
    formula: Literal["byol", "simclr", "solo-learn"] = "byol"
    """Which published LARS, see `harl_fast.optim.formula`."""


class RecordingConfig(Section):
    """What every training writes, and how often."""

    every_steps: Count = 50
    """Steps between log lines; only then is the device waited for."""
    checkpoint_epochs: Count = 10
    """Epochs between checkpoints; one more is written at the end."""
    checkpoint_minutes: float = Field(0.0, ge=0.0, le=10**6)
    """Most minutes between two checkpoints; 0: at the ends of epochs only. It changes no weight."""
    keep_last: Count = 3
    """How many of the newest checkpoints are kept."""
    keep_every_epochs: Count = 100
    """Checkpoints at multiples of this are kept for good."""
    max_skipped: Count = 20
    """Consecutive steps with a loss or gradient that is not finite after which the run fails;
    checked with each log line. Under fp16 they count once the loss scale is at its minimum."""


class LogConfig(RecordingConfig):
    """What is written, and how often."""

    probe_epochs: int = Field(0, ge=0, le=10**6)
    """Epochs between judgements of the features (k-NN and a ridge head); 0: never."""
    probe_images: int = Field(2000, ge=20, le=10**7)
    """Training images behind such a judgement; half as many are judged."""
    sheet_epochs: int = Field(0, ge=0, le=10**6)
    """Epochs between contact sheets of what the network received; 0: never."""


class RunConfig(Section):
    """One pretraining run."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Of initialisation, sample order and all views."""
    epochs: int = Field(1000, ge=1, le=10**6)
    """Passes over the training images; the schedules end there."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    target: TargetConfig = TargetConfig()
    optim: OptimConfig = OptimConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="before")
    @classmethod
    def _of_one_channel(cls, tree: Any) -> Any:
        """Let the defaults of mean and std follow model.in_channels."""
        parts = (tree.get(key, {}) for key in ("model", "data")) if isinstance(tree, dict) else ()
        sections = [part for part in parts if isinstance(part, dict | Section)]
        if len(sections) < 2 or dict(sections[0]).get("in_channels") != 1:
            return tree  # what is of another kind is told where it is checked
        values = dict(sections[1])
        for key, three, one in (("mean", RGB_MEAN, LUMA_MEAN), ("std", RGB_STD, LUMA_STD)):
            if values.get(key, three) in (three, list(three)):
                values[key] = one
        return {**tree, "data": values}

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.optim.warmup_epochs >= self.epochs:
            raise ValueError(
                f"optim.warmup_epochs {self.optim.warmup_epochs} leaves none of epochs "
                f"{self.epochs}; shorten the warm-up or train longer"
            )
        channels = self.model.in_channels
        for key in ("mean", "std"):
            if len(values := getattr(self.data, key)) != channels:
                raise ValueError(
                    f"data.{key} {list(values)} has {len(values)} values, model.in_channels is "
                    f"{channels}; give one per channel"
                )
        return self


def presets() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(name: str, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked configuration of a preset name or a YAML file.

    overrides: ``section.key=value`` strings with YAML values; list items by number
    (``data.views.0.size_px=96``). Raises ConfigError naming the file, the key, the value and the
    nearest valid key.
    """
    path = PRESETS / f"{name}.yaml" if name in presets() else local_path(name)
    if not os.path.exists(path):
        raise ConfigError(
            f"configuration {shown(name)} is neither a file nor a preset "
            f"({', '.join(presets())}){nearest(name, presets())}"
        )
    return _overridden(read_yaml(path), overrides, source=str(path))


def override_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a configuration with overrides as `load_config` takes them. Raises ConfigError."""
    return _overridden(config.model_dump(mode="json"), overrides, source="configuration")


def _overridden(tree: dict[str, Any], overrides: Sequence[str], *, source: str) -> RunConfig:
    """Return what a tree and overrides give; blames these unless the tree is wrong by itself."""

    def changed(texts: Sequence[str], where: str) -> RunConfig:
        other = copy.deepcopy(tree)
        for text in texts:
            if text.startswith("data.views.") and isinstance(other.setdefault("data", {}), dict):
                # The defaults differ per view, so an override of one key must start from them.
                views = [view.model_dump() for view in DataConfig().views]
                other["data"].setdefault("views", views)
            override(other, text, option="--set")
        config: RunConfig = validated(RunConfig, other, where=where, synonyms=SYNONYMS)
        return config

    try:
        return changed(overrides, source)
    except ConfigError:
        changed((), source)
        wrong = blamed(overrides, lambda text: changed([text], ""))
        return changed(overrides, " ".join(f"--set {shown(text)}" for text in wrong))
