"""The names that weights have in other programs' files, and the receipt of what matched.

All names here are of one flat mapping: of nested dictionaries, joined by dots, as
`model.weightfile` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from harl_fast.config import ModelConfig
from harl_fast.errors import CheckpointError
from harl_fast.model.backbones import build_backbone
from harl_fast.model.heads import MLPHead
from harl_fast.model.resnet import ARCHS

WRAPPERS = frozenset(
    {"state_dict", "model_state_dict", "model", "backbone", "encoder", "net"}
    | {"online_network", "online_network_state_dict", "online_encoder", "online", "encoder_q"}
)
"""What may stand before the names of an encoder."""
COPY = re.compile(r"(^|_)(momentum|target|teacher|ema|k)(_|$)")
"""What says that it is the moving average: such an encoder is never taken for the trained one."""
PROJECTORS = ("projector", "projetion", "projection", "projection_head")
"""The second is how sthalles/PyTorch-BYOL and yaox12/BYOL-PyTorch write it."""
STAGES = dict(enumerate(("conv1", "bn1", "", "", "layer1", "layer2", "layer3", "layer4")))
"""The places of `nn.Sequential(*resnet.children())`, a usual way to drop the classifier."""
RESNET, _SEQUENTIAL = "layer1.0.conv1.weight", "4.0.conv1.weight"
"""What a ResNet is known by, under torchvision's names and in such places."""
_EXPECTED = (
    "conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer1.0.bn1.weight",
)  # fmt: skip
"""Five of torchvision's names, for messages."""


@dataclass(frozen=True)
class Receipt:
    """What a load matched: ``318/318 tensors, torchvision names, runs/x step 3750``."""

    matched: int
    """Tensors of the backbone that were found."""
    total: int
    """Tensors that the backbone has."""
    naming: str
    """Whose names they had, such as "torchvision names"."""
    source: str
    """Where they are from: a run and its step, or a file."""

    def __str__(self) -> str:
        return f"{self.matched}/{self.total} tensors, {self.naming}, {self.source}"


@dataclass(frozen=True)
class Located:
    """The encoder among a file's tensors."""

    backbone: dict[str, Tensor]
    """By the names of its library; others that stand beside it are among them."""
    projector: MLPHead | None
    """The projector beside it, if `MLPHead` can be it."""
    naming: str
    pads_by_2: bool = False
    """Whether a 3x3 stem pads by 2, as in solo-learn and the code of HARL's authors."""


def anchor(model: ModelConfig) -> str:
    """Return a name that a network's weights are known by."""
    if model.arch in ARCHS:
        return RESNET
    with torch.device("meta"):
        return next(iter(build_backbone(model).native.state_dict()))


def locate(tensors: Mapping[str, Tensor], *, where: str, anchor: str = RESNET) -> Located:
    """Return the trained encoder in a file, whatever its names begin with.

    anchor: a name that the encoder is known by. Raises CheckpointError if there is none, several
    that differ, or only a moving average.
    """
    flat: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not _same(flat.setdefault(_unwrapped(name), tensor), tensor):
            raise CheckpointError(
                f"{where} holds two networks that differ, one of them wrapped: both have a tensor "
                f"{_unwrapped(name)}: save the one that is meant alone"
            )
    found = {prefix: _below(flat, prefix) for prefix in _prefixes(flat, anchor)}
    if anchor == RESNET:
        for prefix in _prefixes(flat, _SEQUENTIAL):
            found[prefix] = {_by_stage(name): t for name, t in _below(flat, prefix).items()}
    trained = [prefix for prefix in found if set(_parts(prefix)) <= WRAPPERS]
    if not trained:
        raise CheckpointError(_nothing(flat, found, where=where, anchor=anchor))
    first, *others = sorted(trained, key=len)
    for other in others:
        if not _equal(found[first], found[other]):
            raise CheckpointError(
                f"{where} holds {len(trained)} encoders that differ, below "
                f"{' and '.join(repr(prefix) for prefix in sorted(trained))}: save the one that "
                f"is meant alone"
            )
    beside = _beside(flat, first)
    naming = _naming(first, beside, sequential=f"{first}{_SEQUENTIAL}" in flat)
    projector = next(filter(None, (_projector(beside, word) for word in PROJECTORS)), None)
    return Located(
        found[first], projector, naming, pads_by_2=naming.startswith(("solo-learn", "HARL"))
    )


def recognise(located: Located, *, where: str) -> ModelConfig:
    """Return the section that describes a ResNet, from its tensors' names and shapes.

    Strides have no shapes: a 3x3 stem is taken for one of stride 1. Raises CheckpointError.
    """
    weights = located.backbone
    stem = weights.get("conv1.weight")
    if stem is None or stem.ndim != 4:
        raise CheckpointError(
            f"{where} holds a ResNet whose stem is not one convolution conv1 (it has "
            f"{listed([name for name in weights if name.startswith('conv1.')])}), as in timm's "
            f"variants, or where it was pruned or parametrised: give the folder with its "
            f"config.json, a run with model.arch: timm:NAME, or the weights as plain ones"
        )
    block = Bottleneck if "layer1.0.conv3.weight" in weights else BasicBlock
    depths = tuple(_depth(weights, f"layer{number}.") for number in range(1, 5))
    arch = next((name for name, known in ARCHS.items() if known == (block, depths)), None)
    if arch is None:
        raise CheckpointError(
            f"{where} holds a ResNet of {depths} {block.__name__}s, which is none of "
            f"{', '.join(ARCHS)}"
        )
    channels, in_channels, side = stem.shape[:3]
    width = channels / 64
    kinds = {7: "imagenet", 3: "small-pad2" if located.pads_by_2 else "small"}
    if side not in kinds or in_channels not in (1, 3) or not 1 / 8 <= width <= 16:
        raise CheckpointError(
            f"{where} has a first convolution of {tuple(stem.shape)}; (64 x width, 3 or 1, 7, 7) "
            f"or (64 x width, 3 or 1, 3, 3) is expected, of a width from 1/8 to 16"
        )
    heads = {} if located.projector is None else described(located.projector)
    tree = {"arch": arch, "width": width, "in_channels": in_channels, "stem": kinds[side]}
    return ModelConfig.model_validate(tree | heads)


def described(projector: MLPHead) -> dict[str, int]:
    """Return the keys of section ``model`` that a projector fills."""
    assert isinstance(projector.out, nn.Linear)
    return {
        "projector_layers": len(projector.linears) + 1,
        "projector_hidden": projector.out.in_features,
        "projector_out": projector.out.out_features,
    }


def build_projector(weights: Mapping[str, Tensor]) -> MLPHead:
    """Return the projector, in eval mode, whose state dict this is; KeyError if it is none.

    Its last layer has a bias if there is one: those of other programs have.
    """
    first, out = weights["linears.0.weight"], weights["out.weight"]
    layers = 1 + len({name.split(".")[1] for name in weights if name.startswith("linears.")})

    def build() -> MLPHead:
        head = MLPHead(first.shape[1], first.shape[0], out.shape[0], layers=layers)
        if "out.bias" in weights:
            head.out = nn.Linear(out.shape[1], out.shape[0])
        return head

    with torch.device("meta"):  # a few bytes can state a network of any size
        build().load_state_dict(weights, assign=True)
    head = build()
    head.load_state_dict(weights)
    return head.eval()


def _unwrapped(name: str) -> str:
    """Return a name without what DistributedDataParallel and torch.compile put into it."""
    return ".".join(part for part in _parts(name) if part not in ("module", "_orig_mod"))


def _parts(name: str) -> list[str]:
    return [part for part in name.split(".") if part]


def _prefixes(names: Iterable[str], anchor: str) -> list[str]:
    """Return what stands before an anchor, each with its dot."""
    ends = [name for name in names if name == anchor or name.endswith(f".{anchor}")]
    return [name.removesuffix(anchor) for name in ends]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _beside(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return what is named as an encoder's neighbours are, the encoder's own prefix aside."""
    parts = _parts(prefix)
    while parts and parts[-1] in ("backbone", "encoder", "net"):
        parts.pop()
    return _below(tensors, "".join(f"{part}." for part in parts))


def _by_stage(name: str) -> str:
    place, _, rest = name.partition(".")
    stage = STAGES.get(int(place), "") if place.isdecimal() else ""
    return f"{stage}.{rest}" if stage else name


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        _same(tensor, second[name]) for name, tensor in first.items()
    )


def _same(first: Tensor, second: Tensor) -> bool:
    # Other types torch refuses to compare, and NaN is not equal to itself.
    return first is second or (first.dtype == second.dtype and torch.equal(first, second))


def _naming(prefix: str, beside: Mapping[str, Tensor], *, sequential: bool) -> str:
    words = [part for part in _parts(prefix) if part not in ("state_dict", "model")]
    if words in (["backbone"], ["encoder"]):
        # Both train a linear classifier beside the method; HARL's pools in it.
        if "classifier.2.weight" in beside:
            return "HARL names"
        if "classifier.weight" in beside:
            return "solo-learn names"
    names = "places in nn.Sequential" if sequential else "torchvision names"
    return f"{names} below {'.'.join(words)}" if words else names


def _depth(weights: Mapping[str, Tensor], stage: str) -> int:
    return len({n.split(".")[1] for n in weights if n.startswith(stage)})


def _projector(beside: Mapping[str, Tensor], word: str) -> MLPHead | None:
    """Return the perceptron of that name, or None if there is none or `MLPHead` is no such one.

    Of an `nn.Sequential` of (Linear, BatchNorm, ReLU) layers and a Linear, at whatever places.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in beside.items():
        place, _, kind = name.removeprefix(f"{word}.").removeprefix("net.").rpartition(".")
        if name.startswith(f"{word}.") and place.isdecimal():
            layers.setdefault(int(place), {})[kind] = tensor
    rows = [layers[place] for place in sorted(layers)]
    norms, linears = rows[1::2], rows[0::2]
    if len(rows) not in (3, 5) or any("running_mean" not in row for row in norms):
        return None
    if any(row.get("weight", torch.empty(0)).ndim != 2 for row in linears):
        return None
    named: dict[str, Any] = {}
    for number, (linear, norm) in enumerate(zip(linears, norms, strict=False)):
        linear.setdefault("bias", torch.zeros(len(linear["weight"])))
        norm.setdefault("num_batches_tracked", torch.tensor(0))
        named |= {f"linears.{number}.{kind}": tensor for kind, tensor in linear.items()}
        named |= {f"norms.{number}.{kind}": tensor for kind, tensor in norm.items()}
    named |= {f"out.{kind}": tensor for kind, tensor in linears[-1].items()}
    try:
        return build_projector(named)
    except RuntimeError:  # of other sizes than one width throughout
        return None


def _nothing(
    flat: Mapping[str, Tensor], found: Mapping[str, object], *, where: str, anchor: str
) -> str:
    """Say why no encoder was found."""
    averages = [p for p in found if any(COPY.search(part) for part in _parts(p))]
    if averages:
        return (
            f"{where} holds the encoder only as a moving average ({', '.join(averages)}*), which "
            f"is not the trained network. If that is meant, save it alone, under its own names"
        )
    if found:
        below = ", ".join(found)
        return (
            f"{where}: 0 tensors matched: an encoder stands below {below}, which is no name that "
            f"is known before one ({', '.join(sorted(WRAPPERS))}). Save the encoder alone"
        )
    expected = ", ".join(_EXPECTED) if anchor == RESNET else anchor
    return (
        f"{where}: 0 tensors matched: expected are {expected}, with or without a prefix; it holds "
        f"{listed(sorted(flat))}. Weights of torchvision's or timm's ResNets are read, and those "
        f"of solo-learn, HARL and BYOL in PyTorch"
    )


def listed(names: list[str]) -> str:
    """Return the first five names, and how many more there are."""
    shown = ", ".join(name[:80] for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"
