"""The forms in which an encoder is exported: what is written, and how each is loaded back."""

from __future__ import annotations

import importlib
import io
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from harl_fast import __version__
from harl_fast.config import ModelConfig
from harl_fast.engine.networks import Pretrained
from harl_fast.errors import ConfigError, OutputError
from harl_fast.eval.results import Head
from harl_fast.files import naming, write_bytes, write_json, write_text
from harl_fast.model.folder import CARD, CONFIG, FORMAT, PROJECTOR, WEIGHTS, digests, read_folder
from harl_fast.model.pooling import global_mean
from harl_fast.model.resnet import ARCHS
from harl_fast.model.timm_network import PREFIX
from harl_fast.model.weightfile import StatedInputs, read_weights
from harl_fast.tensorfile import open_folder, save_tensors
from harl_fast.textfile import dump_yaml
from harl_fast.tools.card import model_card, origin
from harl_fast.tools.onnx_run import NotRunError, run_apart

CLOSE = 1e-4
"""How far results of another library may be from ours, in shares of the largest value."""


@dataclass(frozen=True)
class Classifier(Head):
    """A linear head on the pooled features."""

    classes: list[str]
    """In their order."""


@dataclass(frozen=True)
class Form:
    """One form: both functions take the folder that it is written to."""

    write: Callable[[Path, Pretrained, Classifier | None], None]
    check: Callable[[Path, Pretrained, Classifier | None], str]
    """Loads it back and returns what was seen; OutputError if it computes something else."""
    refuse: Callable[[ModelConfig], None]
    """Raises ConfigError for networks that the form does not have."""


def example(pretrained: Pretrained, *, count: int = 2) -> Tensor:
    """Return (B, C, S, S) normal noise, the same each time."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, pretrained.model.in_channels, pretrained.size_px, pretrained.size_px)
    return torch.randn(shape, generator=generator)


def is_timms(model: ModelConfig) -> bool:
    """Return whether timm has the same network: also if it is one of torchvision's."""
    return model.arch.startswith(PREFIX) or (model.arch in ARCHS and not _unusual(model))


def _unusual(model: ModelConfig) -> str:
    """Return the key that makes a ResNet one of ours alone, or an empty text."""
    usual = ModelConfig()
    keys = ("stem", "width", "last_stride")
    return next((key for key in keys if getattr(model, key) != getattr(usual, key)), "")


def _refuse_all_but_resnets(library: str) -> Callable[[ModelConfig], None]:
    """Return what raises ConfigError for networks that torchvision and its kin do not have."""

    def refuse(model: ModelConfig) -> None:
        key = "arch" if model.arch not in ARCHS else _unusual(model)
        key = key or ("in_channels" if model.in_channels != 3 else "")
        if key:
            raise ConfigError(
                f"model.{key} {getattr(model, key)} does not exist in {library}: export with "
                f"TO=folder, which torch.hub loads, or with TO=onnx"
            )

    return refuse


def _accept_all(model: ModelConfig) -> None:
    pass


def _named(pretrained: Pretrained, head: Classifier | None) -> dict[str, Tensor]:
    """Return the tensors by torchvision's names, with fc.* if there is a head."""
    tensors = dict(pretrained.backbone.native.state_dict())
    if head is not None:
        tensors |= {"fc.weight": head.weight, "fc.bias": head.bias}
    return tensors


def _inputs(pretrained: Pretrained) -> dict[str, Any]:
    """Return what images are to be, which `StatedInputs` reads."""
    return {key: getattr(pretrained, key) for key in StatedInputs.model_fields}


def _write_torchvision(folder: Path, pretrained: Pretrained, head: Classifier | None) -> None:
    tensors = _named(pretrained, head)
    content = io.BytesIO()  # torch itself ends in a RuntimeError on a full disk
    torch.save(tensors, content)
    write_bytes(folder / "model.pth", content.getvalue())
    metadata = {
        "arch": pretrained.model.arch,
        **{key: json.dumps(value) for key, value in _inputs(pretrained).items()},
        "checkpoint": origin(pretrained),
    }
    if head is not None:
        metadata["classes"] = json.dumps(head.classes)
    save_tensors(folder / WEIGHTS, tensors, metadata=metadata)


def _check_torchvision(folder: Path, pretrained: Pretrained, head: Classifier | None) -> str:
    images = example(pretrained)
    with torch.inference_mode():
        expected = _answers(pretrained.backbone(images), head)
    weights = torch.load(folder / "model.pth", weights_only=True)
    model = getattr(torchvision.models, pretrained.model.arch)(
        num_classes=1 if head is None else len(head.classes)
    )
    if head is None:
        model.fc = nn.Identity()
    model.load_state_dict(weights, strict=True)
    with torch.inference_mode():
        _compare(model.eval()(images), expected, what="torchvision")
    again, _ = read_weights(folder / WEIGHTS)
    if any(not torch.equal(again[name], tensor) for name, tensor in weights.items()):
        raise OutputError(f"{folder / WEIGHTS}: reading it back gives other weights")
    return f"torchvision {torchvision.__version__} loads all {len(weights)} tensors strictly"


def _answers(maps: Tensor, head: Classifier | None) -> Tensor:
    """Return (B, D) pooled features, or (B, K) logits if there is a head, of (B, D, h, h) maps."""
    pooled = global_mean(maps)
    return pooled if head is None else functional.linear(pooled, head.weight, head.bias)


def apart(found: Tensor, expected: Tensor) -> float:
    """Return how far two results are apart in shares of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _compare(found: Tensor, expected: Tensor, *, what: str) -> float:
    """Return how far two results are `apart`; OutputError if far."""
    distance = apart(found, expected)
    if not distance <= CLOSE:  # also for NaN
        raise OutputError(
            f"{what} loads the export but computes something else ({distance:.1e} of the largest "
            f"value apart, at most {CLOSE:.0e} is expected): nothing is written"
        )
    return distance


def _write_folder(folder: Path, pretrained: Pretrained, head: Classifier | None) -> None:
    model = pretrained.model
    config, tensors = _config(pretrained, head), _named(pretrained, None)
    classifier = config["pretrained_cfg"]["classifier"]
    if head is not None:
        tensors |= {f"{classifier}.weight": head.weight, f"{classifier}.bias": head.bias}
    if model.arch.startswith(PREFIX):
        tensors = _completed(pretrained, tensors, classes=config["num_classes"])
    save_tensors(folder / WEIGHTS, tensors, metadata={"format": "pt"})
    if pretrained.projector is not None:
        save_tensors(folder / PROJECTOR, pretrained.projector.state_dict())
    config["harl_fast"]["files"] = digests(folder)
    write_json(folder / CONFIG, config)
    classes = [] if head is None else head.classes
    write_text(folder / CARD, model_card(pretrained, classes=classes, timm=is_timms(model)))


def _config(pretrained: Pretrained, head: Classifier | None) -> dict[str, Any]:
    """Return config.json: timm's schema, and what describes the network here."""
    model, size_px = pretrained.model, pretrained.size_px
    traits: dict[str, Any] = {"first_conv": "conv1", "classifier": "fc"}
    if model.arch.startswith(PREFIX):
        theirs: Any = pretrained.backbone.native
        traits = {key: theirs.pretrained_cfg.get(key) for key in traits}
    name = model.arch.removeprefix(PREFIX) if is_timms(model) else f"harl_fast_{model.arch}"
    classes = [] if head is None else head.classes
    return {
        "architecture": name,
        "num_classes": len(classes),
        "num_features": pretrained.backbone.out_channels,
        **({"label_names": classes} if classes else {}),
        **({"model_args": {"in_chans": 1}} if model.in_channels == 1 else {}),
        "pretrained_cfg": {
            "tag": "harl_fast",
            "custom_load": False,
            "num_classes": len(classes),
            "input_size": [model.in_channels, size_px, size_px],
            "fixed_input_size": False,
            "crop_pct": pretrained.crop,
            "crop_mode": "center",
            "interpolation": "bilinear",
            "mean": list(pretrained.mean),
            "std": list(pretrained.std),
            **traits,
        },
        "harl_fast": {
            "format": FORMAT,
            "version": __version__,
            "model": model.model_dump(mode="json"),
            "source": origin(pretrained),
            "weights_sha256": pretrained.weights_sha256,
        },
    }


def _completed(
    pretrained: Pretrained, tensors: dict[str, Tensor], *, classes: int
) -> dict[str, Tensor]:
    """Return all tensors of timm's network: of layers that pretraining does not reach, its initial.

    Raises ConfigError if a head would have to stand behind such layers: it was trained without.
    """
    timm = optional("timm", option="TO=folder of a network of timm")
    model = pretrained.model
    name = model.arch.removeprefix(PREFIX)
    theirs = timm.create_model(name, num_classes=classes, in_chans=model.in_channels)
    whole: dict[str, Tensor] = theirs.state_dict()
    missing = [name for name in whole if name not in tensors]
    if missing and classes:
        raise ConfigError(
            f"HEAD: {model.arch} has layers between its map and its classifier ({missing[0]}), "
            f"which the head was trained without: export without HEAD"
        )
    return whole | tensors


def _check_folder(folder: Path, pretrained: Pretrained, head: Classifier | None) -> str:
    again, images = read_folder(folder), example(pretrained)
    with torch.inference_mode():
        expected = pretrained.backbone(images)
        if not torch.equal(again.backbone(images), expected):
            raise OutputError(f"{folder}: reading it back gives another network")
    if not is_timms(pretrained.model):
        return "torch.hub loads it; timm has no such network"
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        return "not tried in timm, which is not installed (pip install -e '.[export]')"
    with open_folder(folder) as place:
        options: Sequence[dict[str, Any]] = ({}, {"num_classes": 10})
        for each in options:
            theirs = timm.create_model(f"local-dir:{place}", pretrained=True, **each).eval()
            with torch.inference_mode():
                if not torch.equal(theirs.forward_features(images), expected):
                    raise OutputError(f"timm loads {folder} but computes something else")
                if head is not None and not each:
                    _compare(theirs(images), _answers(expected, head), what="timm")
        if pretrained.model.arch in ARCHS:
            theirs = timm.create_model(f"local-dir:{place}", pretrained=True, features_only=True)
            with torch.inference_mode():
                if not torch.equal(theirs.eval()(images)[-1], expected):
                    raise OutputError(f"timm's features_only of {folder} computes something else")
    return f"timm {timm.__version__} loads it: equal bits"


class _Deployed(nn.Module):
    """Pixels in [0, 1] to pooled features, and logits if there is a head."""

    mean: Tensor
    std: Tensor

    def __init__(self, pretrained: Pretrained, head: Classifier | None) -> None:
        super().__init__()
        self.backbone, self.head = pretrained.backbone, head
        for name in ("mean", "std"):
            values = torch.tensor(getattr(pretrained, name)).view(1, -1, 1, 1)
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pooled = global_mean(self.backbone((images - self.mean) / self.std))
        if self.head is None:
            return (pooled,)
        return pooled, functional.linear(pooled, self.head.weight, self.head.bias)


def _write_onnx(folder: Path, pretrained: Pretrained, head: Classifier | None) -> None:
    for package in ("onnx", "onnxscript"):
        optional(package, option="TO=onnx")
    names = ["features", *(["logits"] if head else [])]
    program = torch.onnx.export(
        _Deployed(pretrained, head).eval(),
        (example(pretrained).sigmoid(),),
        dynamo=True,
        input_names=["images"],
        output_names=names,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program is not None
    with naming(folder / "model.onnx"):
        program.save(folder / "model.onnx", external_data=False)
    channels = "RGB" if pretrained.model.in_channels == 3 else "luma, one channel,"
    about = {
        "input": f"{channels} in [0, 1], normalised inside",
        **_inputs(pretrained),
        "source": origin(pretrained),
        "classes": [] if head is None else head.classes,
    }
    write_json(folder / "model.json", about)


def _check_onnx(folder: Path, pretrained: Pretrained, head: Classifier | None) -> str:
    deployed = _Deployed(pretrained, head).eval()
    images = [example(pretrained, count=count).sigmoid() for count in (1, 5)]
    with torch.inference_mode():
        expected = [array for one in images for array in deployed(one)]
    try:
        version, found = run_apart(folder / "model.onnx", [one.numpy() for one in images])
    except NotRunError as why:
        return str(why)
    pairs = zip(map(torch.from_numpy, found), expected, strict=True)
    farthest = max(_compare(one, other, what="onnxruntime") for one, other in pairs)
    return f"onnxruntime {version} on 1 and 5 images: within {farthest:.0e}"


def detectron2_name(name: str) -> str:
    """Return detectron2's name of a tensor of torchvision's ResNet."""
    stage, _, rest = name.partition(".")
    if not stage.startswith("layer"):
        stage, rest = "stem", name
    else:
        stage = f"res{int(stage.removeprefix('layer')) + 1}"
    parts = rest.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    norms = (f"conv{part[2:]}.norm" if part.startswith("bn") else part for part in parts.split("."))
    return ".".join((stage, *norms))


def _write_detectron2(folder: Path, pretrained: Pretrained, head: Classifier | None) -> None:
    if head is not None:
        raise ConfigError("HEAD: detectron2's backbones have no classifier; export without HEAD")
    tensors = pretrained.backbone.native.state_dict()
    arrays = {detectron2_name(name): tensor.numpy() for name, tensor in tensors.items()}
    content = {"model": arrays, "__author__": "harl_fast", "matching_heuristics": True}
    write_bytes(folder / "model.pkl", pickle.dumps(content))
    resnets: dict[str, Any] = {
        "DEPTH": int(pretrained.model.arch.removeprefix("resnet")),
        "STRIDE_IN_1X1": False,
    }
    if resnets["DEPTH"] < 50:
        resnets["RES2_OUT_CHANNELS"] = 64  # which detectron2 wants of basic blocks
    scaled = {key: [255.0 * v for v in getattr(pretrained, key)] for key in ("mean", "std")}
    tree = {
        "MODEL": {
            "WEIGHTS": "model.pkl",
            "PIXEL_MEAN": scaled["mean"],
            "PIXEL_STD": scaled["std"],
            "RESNETS": resnets,
        },
        "INPUT": {"FORMAT": "RGB"},
    }
    write_text(folder / "model.yaml", dump_yaml(tree))


def _check_detectron2(folder: Path, pretrained: Pretrained, head: Classifier | None) -> str:
    # Written here a moment ago: no file of others is unpickled.
    content = pickle.loads((folder / "model.pkl").read_bytes())["model"]
    tensors = pretrained.backbone.native.state_dict()
    for name, tensor in tensors.items():
        if not torch.equal(torch.from_numpy(content[detectron2_name(name)]), tensor):
            raise OutputError(f"{folder / 'model.pkl'}: {name} reads back differently")
    return f"{len(content)} arrays under detectron2's names"


FORMS = {
    "folder": Form(_write_folder, _check_folder, _accept_all),
    "torchvision": Form(
        _write_torchvision, _check_torchvision, _refuse_all_but_resnets("torchvision")
    ),
    "onnx": Form(_write_onnx, _check_onnx, _accept_all),
    "detectron2": Form(_write_detectron2, _check_detectron2, _refuse_all_but_resnets("detectron2")),
}
"""By the value of TO."""


def optional(package: str, *, option: str) -> Any:
    """Return a package that an extra installs; ConfigError naming the extra if it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{option} needs the package {package} ({error}); install it with "
            f"`.venv/bin/python -m pip install -e '.[export]'`"
        ) from error
