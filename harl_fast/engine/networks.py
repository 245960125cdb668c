"""Networks: fresh ones of a configuration, checkpoints' encoders, and other programs' files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from harl_fast.config import LUMA_MEAN, LUMA_STD, RGB_MEAN, RGB_STD, ModelConfig, RunConfig
from harl_fast.engine.checkpoint.format import (
    Checkpoint,
    Record,
    alternative,
    load_exactly,
    mismatch,
    open_checkpoint,
)
from harl_fast.errors import CheckpointError, ConfigError
from harl_fast.eval.options import check_inputs, usual_crop
from harl_fast.files import local_path, to_stderr
from harl_fast.model.backbone import Backbone
from harl_fast.model.backbones import build_backbone
from harl_fast.model.folder import WEIGHTS, damaged, folder_of, load_native, read_folder
from harl_fast.model.harl import HARL
from harl_fast.model.heads import LinearHeads, MLPHead
from harl_fast.model.names import Receipt, anchor, locate, recognise
from harl_fast.model.seeding import own_numbers
from harl_fast.model.timm_network import PREFIX
from harl_fast.model.weightfile import (
    TORCH,
    StatedInputs,
    digest,
    read_weights,
    refuse_other_frameworks,
)
from harl_fast.runfiles import is_part_of_a_checkpoint
from harl_fast.tensorfile import open_tensors

Part = TypeVar("Part", bound=nn.Module)


def build_model(config: RunConfig) -> HARL:
    """Return the freshly initialised method on the CPU, a function of the configuration alone."""
    with own_numbers(config.seed + 1):  # the backbone draws from `seed` itself
        encoder = random_encoder(config, seed=config.seed).train()
        roles = [view.role for view in config.data.views]
        return HARL(config.model, config.loss, backbone=encoder, roles=roles)


def tensor_shapes(config: RunConfig) -> dict[str, torch.Size]:
    """Return the shapes of the method's tensors by name; nothing is allocated."""
    # Neither changes a shape, and some of the first cannot be built without CUDA.
    model = config.model.model_copy(update={"sync_bn": "none", "compile": False})
    with torch.device("meta"):
        harl = HARL(model, config.loss, roles=[view.role for view in config.data.views])
    return {name: tensor.shape for name, tensor in harl.state_dict().items()}


def random_encoder(config: RunConfig, *, seed: int) -> Backbone:
    """Return a freshly initialised backbone, on the CPU and in eval mode."""
    with own_numbers(seed):
        return build_backbone(config.model).eval()


def load_encoder(path: Path | str) -> tuple[Backbone, RunConfig]:
    """Return a checkpoint's online backbone, on the CPU and in eval mode, and its configuration.

    path: a run folder, its checkpoints folder or a ``step-*.safetensors`` file. The backbone turns
    (B, C, S, S) images of ``model.in_channels``, normalised by the configuration's ``data.mean``
    and ``data.std``, into (B, D, h, h) maps. The receipt is printed.
    Raises CheckpointError, also for an exported folder and for another program's file, which
    `load_pretrained` reads.
    """
    path = local_path(path)
    if folder_of(path) or (path.is_file() and is_foreign(path)):
        raise CheckpointError(f"{path} is no checkpoint of this program: load_pretrained reads it")
    checkpoint = open_to_use(path)
    found = encoder_of(checkpoint)
    to_stderr(f"weights: {checkpoint.receipt}")
    return found


def open_to_use(path: Path | str) -> Checkpoint:
    """Return a checkpoint that is unchanged; what is to be told of it is printed.

    path: as for `load_encoder`. Raises CheckpointError.
    """
    checkpoint = open_checkpoint(local_path(path), verify=True)
    for note in checkpoint.notes:
        to_stderr(note)
    return checkpoint


def encoder_of(checkpoint: Checkpoint) -> tuple[Backbone, RunConfig]:
    """Return the encoder and the configuration of a checkpoint, see `load_encoder`."""
    config = checkpoint.record.config
    weights = checkpoint.tensors("online.backbone")
    encoder = _part(lambda: random_encoder(config, seed=0), checkpoint, "backbone", weights)
    _check_features(
        encoder,
        size_px=config.data.views[0].size_px,
        where=str(checkpoint.path),
        remedy=alternative(checkpoint.path),
    )
    return encoder, config


def _part(
    build: Callable[[], Part], checkpoint: Checkpoint, name: str, weights: Mapping[str, Tensor]
) -> Part:
    """Return a part of a checkpoint's network with its weights."""
    try:
        with torch.device("meta"):  # a few bytes can state a network of any size
            load_exactly(build(), weights, assign=True)
        load_exactly(module := build(), weights)
        return module
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path} does not hold the {name} that its record describes "
            f"({mismatch(error)}). {alternative(checkpoint.path)}"
        ) from error


def _check_features(
    encoder: Backbone,
    *,
    size_px: int,
    where: str,
    remedy: str = "Use another file",
) -> None:
    """Raise CheckpointError unless an encoder's statistics can be and its features are finite."""
    # Training does not read running statistics, so a run goes on and saves whatever they are.
    shape = (1, encoder.in_channels, size_px, size_px)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tensors = encoder.state_dict()
    for name, tensor in tensors.items():
        if name.endswith("running_var") and (tensor < 0).any():
            raise CheckpointError(f"{where}: {name} holds variances below 0. {remedy}")
    with torch.inference_mode():
        finite = [*(tensor.isfinite().all() for tensor in tensors.values())]
        finite.append(encoder(image).isfinite().all())
    if not all(finite):
        raise CheckpointError(
            f"{where}: its encoder's running statistics or features are not finite, as a loss that "
            f"was not finite leaves them. {remedy}"
        )


@dataclass(frozen=True)
class Pretrained:
    """A backbone with everything that using it needs, see `load_pretrained`."""

    backbone: Backbone
    """On the CPU and in eval mode: (B, C, S, S) normalised images to (B, D, h, h) maps."""
    projector: MLPHead | None
    """The online projector, if the file has one that `MLPHead` can be."""
    model: ModelConfig
    """What describes backbone and projector."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, of values in [0, 1]."""
    size_px: int
    """Side of the images that it was trained on."""
    crop: float
    """Share of a picture's shorter side that it is judged on."""
    receipt: Receipt
    weights_sha256: str
    """Of the backbone's tensors, whatever file they are from, see `digest`."""
    source: Path
    """The file."""
    head: LinearHeads | None = None
    """The linear classifier of the pooled features in an exported folder or a fine-tuned run, if
    there is one."""
    classes: tuple[str, ...] = ()
    """The classifier's, in its order."""
    record: Record | None = None
    """Of a checkpoint."""
    assumed: tuple[str, ...] = ()
    """Which of mean, std and size_px neither the file nor the user says."""


def load_pretrained(
    ckpt: Path | str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size_px: int | None = None,
) -> Pretrained:
    """Return the trained encoder of a run or of another program's file; rank 0 prints the receipt.

    ckpt: a run folder, its checkpoints folder, a step file, an exported folder (`model.folder`), or
    weights of torchvision, timm, solo-learn, HARL or BYOL in PyTorch (`model.names`). mean, std,
    size_px: in place of what it says itself; files of others say nothing, so that ImageNet's are
    the defaults. Raises HarlError unless all of the backbone is there and finite, and for inputs
    that the command line would not take.
    """
    check_inputs(mean, std, size_px)
    given = {"mean": mean, "std": std, "size_px": size_px}
    ckpt = local_path(ckpt)
    refuse_other_frameworks(ckpt)
    if folder := folder_of(ckpt):
        loaded = _of_folder(folder)
    elif is_foreign(ckpt):
        loaded = _of_file(ckpt)
    else:
        loaded = _of_checkpoint(open_to_use(ckpt))
    own = loaded.mean, loaded.std, loaded.size_px
    loaded = replace(
        loaded,
        mean=loaded.mean if mean is None else tuple(map(float, mean)),
        std=loaded.std if std is None else tuple(map(float, std)),
        size_px=size_px or loaded.size_px,
        crop=usual_crop(size_px) if size_px not in (None, loaded.size_px) else loaded.crop,
        assumed=tuple(name for name in loaded.assumed if given[name] is None),
    )
    for option, values in (("--mean", loaded.mean), ("--std", loaded.std)):
        if len(values) != loaded.model.in_channels:
            raise ConfigError(
                f"{option} has {len(values)} values, the network of {ckpt} takes images of "
                f"{loaded.model.in_channels} channels: give as many"
            )
    if os.environ.get("RANK", "0") == "0":
        to_stderr(f"weights: {loaded.receipt}")
        if is_foreign(ckpt) or loaded.assumed or own != (loaded.mean, loaded.std, loaded.size_px):
            to_stderr(f"inputs: {_inputs_text(loaded)}")
    return loaded


def is_foreign(path: Path) -> bool:
    """Return whether a file is of another program: neither a run's nor an exported folder's."""
    if path.suffix in TORCH:
        return not path.is_dir()
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with open_tensors(path) as stream:
            return not any(name.startswith("online.") for name in stream.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if is_part_of_a_checkpoint(path):  # a damaged one, of which its record says more
            return False
        raise CheckpointError(f"{path} cannot be read ({error})") from error


def _of_checkpoint(checkpoint: Checkpoint) -> Pretrained:
    backbone, config = encoder_of(checkpoint)
    tuned, size_px = checkpoint.record.finetune, config.data.views[0].size_px
    return Pretrained(
        backbone=backbone,
        projector=_projector_of(checkpoint, backbone),
        model=config.model,
        mean=config.data.mean,
        std=config.data.std,
        size_px=size_px,
        crop=tuned.data.centre if tuned and tuned.data.centre else usual_crop(size_px),
        receipt=checkpoint.receipt,
        weights_sha256=digest(backbone.native.state_dict()),
        source=checkpoint.path,
        record=checkpoint.record,
        **_head_of(checkpoint, backbone),
    )


def _of_folder(folder: Path) -> Pretrained:
    found = read_folder(folder)
    naming = "timm names" if found.model.arch.startswith(PREFIX) else "torchvision names"
    sha256 = digest(found.backbone.native.state_dict())
    if found.weights_sha256 not in ("", sha256):  # of exports without digests of files
        raise damaged(folder / WEIGHTS)
    _check_features(found.backbone, size_px=found.size_px, where=str(folder))
    return Pretrained(
        backbone=found.backbone,
        projector=found.projector,
        model=found.model,
        mean=found.mean,
        std=found.std,
        size_px=found.size_px,
        crop=found.crop or usual_crop(found.size_px),
        assumed=found.assumed,
        receipt=Receipt(found.matched, found.matched, naming, f"{folder} ({found.source})"),
        weights_sha256=sha256,
        source=folder,
        head=found.head,
        classes=tuple(found.classes),
    )


def _of_file(path: Path) -> Pretrained:
    tensors, about = read_weights(path)
    arch = about.get("arch", "")
    if arch.startswith(PREFIX):
        model = ModelConfig(arch=arch)
        located = locate(tensors, where=str(path), anchor=anchor(model))
    else:
        located = locate(tensors, where=str(path))
        model = recognise(located, where=str(path))
    backbone, matched = load_native(model, located.backbone, where=str(path))
    stated = StatedInputs.of(about)
    size_px = stated.size_px or (224 if model.stem == "imagenet" else 32)
    _check_features(backbone, size_px=size_px, where=str(path))
    grey = model.in_channels == 1
    return Pretrained(
        backbone=backbone,
        projector=located.projector,
        model=model,
        mean=stated.mean or (LUMA_MEAN if grey else RGB_MEAN),
        std=stated.std or (LUMA_STD if grey else RGB_STD),
        size_px=size_px,
        crop=stated.crop or usual_crop(size_px),
        assumed=tuple(key for key in ("mean", "std", "size_px") if not getattr(stated, key)),
        receipt=Receipt(matched, matched, located.naming, str(path)),
        weights_sha256=digest(backbone.native.state_dict()),
        source=path,
    )


def _inputs_text(loaded: Pretrained) -> str:
    mean, std = (", ".join(f"{value:g}" for value in each) for each in (loaded.mean, loaded.std))
    names = "" if len(loaded.assumed) == 3 else f"{' and '.join(loaded.assumed)} "
    assumed = f" ({names}assumed: the file does not say)" if loaded.assumed else ""
    return f"mean {mean}, std {std}, {loaded.size_px} px{assumed}"


def random_like(pretrained: Pretrained, *, seed: int) -> Pretrained:
    """Return the same network freshly initialised: the baseline."""
    with own_numbers(seed):
        backbone = build_backbone(pretrained.model).eval()
        projector = pretrained.projector and fresh_projector(pretrained.model, backbone).eval()
    return replace(
        pretrained,
        backbone=backbone,
        projector=projector,
        receipt=Receipt(0, pretrained.receipt.total, "freshly initialised", f"seed {seed}"),
        weights_sha256=digest(backbone.native.state_dict()),
        head=None,
        classes=(),
    )


def untrained(config: RunConfig, *, seed: int) -> Pretrained:
    """Return the encoder of a configuration freshly initialised, without a checkpoint of it."""
    backbone = random_encoder(config, seed=seed)
    weights = backbone.native.state_dict()
    return Pretrained(
        backbone=backbone,
        projector=None,
        model=config.model,
        mean=config.data.mean,
        std=config.data.std,
        size_px=config.data.views[0].size_px,
        crop=usual_crop(config.data.views[0].size_px),
        receipt=Receipt(0, len(weights), "freshly initialised", f"seed {seed}"),
        weights_sha256=digest(weights),
        source=Path("random"),
    )


def fresh_projector(model: ModelConfig, backbone: Backbone) -> MLPHead:
    """Return the freshly initialised projector of a section on a backbone."""
    sizes = (backbone.out_channels, model.projector_hidden, model.projector_out)
    return MLPHead(*sizes, layers=model.projector_layers)


def _projector_of(checkpoint: Checkpoint, backbone: Backbone) -> MLPHead | None:
    """Return the projector of a pretraining, or one that was fine-tuned whole."""
    tuned = checkpoint.record.finetune
    weights = checkpoint.tensors("online.projector")
    if tuned is not None and tuned.ft_proj_selector == -1:
        weights = checkpoint.tensors("online.projection")
    if not weights:
        return None
    model = checkpoint.record.config.model
    return _part(lambda: fresh_projector(model, backbone), checkpoint, "projector", weights).eval()


def _head_of(checkpoint: Checkpoint, backbone: Backbone) -> dict[str, Any]:
    """Return the fields of `Pretrained` for the one head on the pooled features of a fine-tuning.

    Among several, results know the best one; behind the projector it is no head of the backbone.
    """
    tuned, classes = checkpoint.record.finetune, checkpoint.record.data.get("classes")
    if tuned is None or tuned.ft_proj_selector or len(tuned.head_lr_grid) > 1:
        return {}
    names = tuple(map(str, classes if isinstance(classes, list) else ()))
    weights, width = checkpoint.tensors("online.heads"), backbone.out_channels
    head = _part(lambda: LinearHeads(width, len(names)), checkpoint, "head", weights).eval()
    return {"head": head, "classes": names}
