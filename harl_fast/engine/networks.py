"""Networks: fresh ones of a configuration, checkpoints' encoders, and other programs' files."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from harl_fast.config import ModelConfig, RunConfig
from harl_fast.engine.checkpoint.format import (
    Checkpoint,
    alternative,
    mismatch,
    open_checkpoint,
    save_tensors,
)
from harl_fast.engine.runfolder import check_apart
from harl_fast.errors import CheckpointError
from harl_fast.files import check_output, replacing, to_stderr
from harl_fast.model.backbone import Backbone
from harl_fast.model.backbones import build_backbone
from harl_fast.model.harl import HARL
from harl_fast.model.heads import MLPHead
from harl_fast.model.names import Receipt
from harl_fast.tensorfile import open_tensors


def build_model(config: RunConfig) -> HARL:
    """Return the freshly initialised method on the CPU, a function of the configuration alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)  # the backbone draws from `seed` itself
        encoder = random_encoder(config, seed=config.seed).train()
        return HARL(config.model, config.loss, backbone=encoder)


def compile_networks(harl: HARL, *, sizes: int) -> None:
    """Compile both networks, once per size of views: code of fixed shapes is faster."""
    # Online and target share their functions, of which torch keeps 8 versions by default and then
    # runs uncompiled: from a fifth size on.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 2 * sizes + 2)
    for network in (harl, harl.target):
        for child in network.children():
            child.compile(dynamic=False)


def random_encoder(config: RunConfig, *, seed: int) -> Backbone:
    """Return a freshly initialised backbone, on the CPU and in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_backbone(config.model).eval()


def load_encoder(path: Path | str) -> tuple[Backbone, RunConfig]:
    """Return a checkpoint's online backbone, on the CPU and in eval mode, and its configuration.

    path: a run folder, its checkpoints folder or a ``step-*.safetensors`` file. The backbone turns
    (B, C, S, S) images of ``model.in_channels``, normalised by the configuration's ``data.mean``
    and ``data.std``, into (B, D, h, h) maps. What is to be told of the checkpoint is printed.
    Raises CheckpointError.
    """
    return encoder_of(open_to_use(path))


def open_to_use(path: Path | str) -> Checkpoint:
    """Return a checkpoint that is unchanged; what is to be told of it is printed.

    path: as for `load_encoder`. Raises CheckpointError.
    """
    checkpoint = open_checkpoint(Path(path), verify=True)
    for note in checkpoint.notes:
        to_stderr(note)
    return checkpoint


def encoder_of(checkpoint: Checkpoint) -> tuple[Backbone, RunConfig]:
    """Return the encoder and the configuration of a checkpoint, see `load_encoder`."""
    config, weights = checkpoint.record.config, checkpoint.tensors("online.backbone")
    encoder = random_encoder(config, seed=0)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path} does not hold the backbone that its record describes "
            f"({mismatch(error)}). {alternative(checkpoint.path)}"
        ) from error
    # Training does not read running statistics, so a run goes on and saves whatever they are.
    size = config.data.views[0].size_px
    shape = (1, config.model.in_channels, size, size)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        finite = [*(tensor.isfinite().all() for tensor in weights.values())]
        finite.append(encoder(image).isfinite().all())
    if not all(finite):
        raise CheckpointError(
            f"{checkpoint.path}: its encoder's running statistics or features are not finite, as a "
            f"loss that was not finite leaves them. {alternative(checkpoint.path)}"
        )
    return encoder, config


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
    receipt: Receipt
    weights_sha256: str
    """Of the backbone's tensors, whatever file they are from, see `digest`."""
    source: Path
    """The file."""


def load_pretrained(
    ckpt: Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size_px: int | None = None,
) -> Pretrained:
    """Return the online network of a checkpoint; rank 0 prints the receipt.

    ckpt: a run folder, its checkpoints folder or a step file. mean, std, size_px: in place of what
    the checkpoint says. Raises CheckpointError unless all of the backbone is there and finite.
    """
    checkpoint = open_to_use(ckpt)
    backbone, config = encoder_of(checkpoint)
    run = checkpoint.path.parent
    run = run.parent if run.name == "checkpoints" else run
    count = len(backbone.state_dict())
    naming = "timm names" if config.model.arch.startswith("timm:") else "torchvision names"
    loaded = Pretrained(
        backbone=backbone,
        projector=_projector_of(checkpoint, backbone),
        model=config.model,
        mean=tuple(mean or config.data.mean),
        std=tuple(std or config.data.std),
        size_px=size_px or config.data.views[0].size_px,
        receipt=Receipt(count, count, naming, f"{run} step {checkpoint.record.step}"),
        weights_sha256=digest(backbone),
        source=checkpoint.path,
    )
    if os.environ.get("RANK", "0") == "0":
        to_stderr(f"weights: {loaded.receipt}")
    return loaded


def random_like(pretrained: Pretrained, *, seed: int) -> Pretrained:
    """Return the same network freshly initialised: the baseline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(pretrained.model).eval()
        projector = pretrained.projector and _fresh_projector(pretrained.model, backbone)
    count = pretrained.receipt.total
    return replace(
        pretrained,
        backbone=backbone,
        projector=projector,
        receipt=Receipt(0, count, "freshly initialised", f"seed {seed}"),
        weights_sha256=digest(backbone),
    )


def digest(backbone: Backbone) -> str:
    """Return the SHA-256 of a backbone's names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(backbone.native.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _fresh_projector(model: ModelConfig, backbone: Backbone) -> MLPHead:
    return MLPHead(
        backbone.out_channels,
        model.projector_hidden,
        model.projector_out,
        layers=model.projector_layers,
    ).eval()


def _projector_of(checkpoint: Checkpoint, backbone: Backbone) -> MLPHead | None:
    weights = checkpoint.tensors("online.projector")
    if not weights:
        return None
    projector = _fresh_projector(checkpoint.record.config.model, backbone)
    try:
        projector.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path} does not hold the projector that its record describes "
            f"({mismatch(error)}). {alternative(checkpoint.path)}"
        ) from error
    return projector


def export_encoder(path: Path | str, out: Path | str) -> str:
    """Write a checkpoint's online backbone as a safetensors file, and return what was written.

    path: as for `load_encoder`. The tensors have the names of torchvision, or of timm for its
    networks, so that they load there; only the classifier is missing. The file's metadata hold
    ``arch``, ``mean``, ``std`` and ``checkpoint``. Raises HarlError or OSError.
    """
    checkpoint, out = open_to_use(path), Path(out)
    check_output(out, option="OUT", inputs=[checkpoint.path])
    check_apart(out, option="OUT")
    encoder, config = encoder_of(checkpoint)
    weights = encoder.native.state_dict()
    metadata = {
        "arch": config.model.arch,
        "mean": json.dumps(config.data.mean),
        "std": json.dumps(config.data.std),
        "checkpoint": f"{checkpoint.record.run_id} {checkpoint.path.stem}".strip(),
    }
    with replacing(out) as temporary:
        save_tensors(temporary, weights, metadata=metadata)
    return f"{out}: {len(weights)} tensors of {config.model.arch} from {checkpoint.path}"


@dataclass(frozen=True)
class EncoderFile:
    """A backbone's weights from a file without heads, matched with a configuration's backbone."""

    path: Path
    weights: dict[str, Tensor]
    """By the names of the backbone's library, see `Backbone.native`."""
    notes: tuple[str, ...]
    """The receipt: what matched, and what was left over."""

    def load_into(self, harl: HARL) -> None:
        """Set the backbones of both networks; the heads stay as they are."""
        for network in (harl, harl.target):
            # Only counts of batches may be missing, which old files of torchvision lack.
            network.backbone.native.load_state_dict(self.weights, strict=False)


def open_initial(path: Path, model: ModelConfig) -> Checkpoint | EncoderFile:
    """Return what ``--init-from`` names: a checkpoint, or an encoder's file of torchvision or timm.

    A file is an encoder's if it is a ``.pth`` or ``.pt``, or a ``.safetensors`` that is no
    checkpoint's. Raises CheckpointError, also if it does not hold all of the backbone.
    """
    if path.suffix in (".pth", ".pt"):
        return _matched(path, _read_pth(path), model)
    if path.suffix == ".safetensors" and path.is_file() and not path.with_suffix(".json").exists():
        try:
            with open_tensors(path) as stream:
                names = list(stream.keys())
                if not any(name.startswith("online.") for name in names):
                    found = {name: stream.get_tensor(name) for name in names}
                    return _matched(path, found, model)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error})") from error
    return open_checkpoint(path, verify=True)


def _read_pth(path: Path) -> Mapping[Any, Any]:
    try:
        # Tensors and containers alone: unpickling anything else could run code.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} cannot be read as plain weights ({type(error).__name__}: {reason}). Save the "
            f"network's state_dict() alone, best by safetensors.torch.save_file"
        ) from error
    while isinstance(content, Mapping) and (
        inner := next((content[k] for k in ("state_dict", "model") if k in content), None)
    ):
        content = inner
    return content if isinstance(content, Mapping) else {}


def _matched(path: Path, found: Mapping[Any, Any], model: ModelConfig) -> EncoderFile:
    """Return the tensors of ``found`` that the backbone of ``model`` has, with a receipt."""
    with torch.device("meta"):
        expected = build_backbone(model).native.state_dict()
    tensors = {str(k).removeprefix("module."): t for k, t in found.items() if torch.is_tensor(t)}
    weights = {
        name: tensors[name]
        for name, like in expected.items()
        if name in tensors and tensors[name].shape == like.shape
    }
    missing = [name for name in expected if name not in weights]
    over = sorted(name for name in tensors if name not in weights)
    receipt = (
        f"{path}: {len(weights)} of the {len(expected)} tensors of {model.arch} matched; "
        f"missing: {_listed(missing)}; left over: {_listed(over)}"
    )
    if any(not name.endswith("num_batches_tracked") for name in missing):
        raise CheckpointError(
            f"{receipt}. All of the backbone must match: give model.arch, model.width, model.stem "
            f"and model.in_channels as the file's network has them, or another file"
        )
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite")
    return EncoderFile(path, weights, (f"{receipt}; the heads start at random",))


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown or "none"
