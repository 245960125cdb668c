"""The small network of the `selftrained` method: definition, weight file, inference.

A feature pyramid (Lin et al., CVPR 2017) of plain 3 x 3 convolutions, half a million weights, that
maps a whole image to one logit for every 2 x 2 input pixels. It starts from random weights: nothing
in it was ever trained on anything but the user's images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from harl_fast.errors import ConfigError, DataError, one_line, shown
from harl_fast.files import write_bytes
from harl_fast.tensorfile import open_tensors
from harl_fast.textfile import parse_json
from preprocess.images.arrays import Map, Pixels
from preprocess.masks.heuristic.binary import resized
from preprocess.masks.heuristic.cues import barrier_distance, side_distances
from preprocess.masks.heuristic.method import SIDE, outlined
from preprocess.masks.selftrained.ensemble import MEMBERS, opinions

FORMAT = "harl_fast masks 1"
"""Stands in every weight file; another number means another meaning of the weights."""
_DIGEST = "weights_sha256"
BATCH = 16
"""Most images in one forward pass: more is not faster on one core, and needs more memory."""
MIDDLE, SPREAD = 118.0, 64.0
"""Mean and deviation of photographs' levels, roughly; normalisation after that does the rest."""
REMEDY = "make it again with `make masks-train`, or give the right file"

COUNT = 6
"""Cues of a place: distance to each side, the second smallest of those, the barrier distance."""
STRIP = 0.08
"""Width of the strip along a side, in sides."""
REACH = 8.0
"""Distances of this many deviations become 1/2: beyond, more says little more."""
BARRIER_REACH = 40.0
"""The barrier distance, summed over the channels, that becomes 1/2."""

Channels = Annotated[int, Field(ge=1, le=1024)]


@dataclass(frozen=True)
class Architecture:
    """Sizes of a `MaskNet`; they are written into the weight file."""

    side: Annotated[int, Field(ge=32, le=1024, multiple_of=2)] = 96
    """Side of the square that images are resized to, in pixels."""
    widths: Annotated[tuple[Channels, ...], Field(min_length=2, max_length=10)] = (
        24, 32, 64, 96, 128, 128,
    )  # fmt: skip
    """Channels of the stem and of each stage; every stage but the first halves the side."""
    depth: Annotated[int, Field(ge=1, le=16)] = 2
    """Convolutions in each stage but the first, which has one."""
    lateral: Channels = 48
    """Channels of the way back up."""
    top: Channels = 32
    """Channels at the finest level, where most of the time goes."""
    members: Annotated[int, Field(ge=1, le=64)] = len(MEMBERS)
    """Ensemble members whose maps it sees."""


class Conv(nn.Module):
    """3 x 3 convolution, batch normalisation, ReLU; with an identity around it if sizes agree."""

    def __init__(self, inner: int, outer: int, *, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outer)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return functional.relu(x + y if self.residual else y)

    def fold(self) -> None:
        """Put the normalisation's scale and shift into the convolution, for inference."""
        assert isinstance(self.norm, nn.BatchNorm2d)
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()


class MaskNet(nn.Module):
    """(B, 3, S, S) float pixels in [0, 255] to (B, 1, S/2, S/2) float logits of foreground.

    It also takes (B, COUNT + M, S/2, S/2) float cues in [0, 1] of `cues_array`.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        widths, lateral, top = architecture.widths, architecture.lateral, architecture.top
        self.stem = Conv(3, widths[0], stride=2)
        self.stages = nn.ModuleList()
        inners = [widths[0] + COUNT + architecture.members, *widths[1:-1]]
        for number, (inner, outer) in enumerate(zip(inners, widths[1:], strict=True)):
            first = Conv(inner, outer, stride=1 if number == 0 else 2)
            more = architecture.depth - 1 if number else 0
            rest = [Conv(outer, outer, residual=True) for _ in range(more)]
            self.stages.append(nn.Sequential(first, *rest))
        ups = [top] + [lateral] * (len(self.stages) - 1)
        self.laterals = nn.ModuleList(
            nn.Conv2d(width, up, 1) for width, up in zip(widths[1:], ups, strict=True)
        )
        self.smooth = nn.ModuleList(Conv(up, up) for up in ups)
        self.narrow = nn.Conv2d(lateral, top, 1)
        self.context = nn.Linear(widths[-1], widths[-1])
        self.head = nn.Conv2d(top, 1, 1)

    def forward(self, pixels: Tensor, cues: Tensor) -> Tensor:
        x = self.stem((pixels - MIDDLE) / SPREAD)
        x = torch.cat([x, 4 * cues - 1], 1)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        # What the whole image looks like, told to every place: "unlike the rest" needs the rest.
        whole = self.context(levels[-1].mean((2, 3)))
        levels[-1] = levels[-1] + whole[:, :, None, None]
        y: Tensor | None = None
        for number in reversed(range(len(levels))):
            level = self.laterals[number](levels[number])
            if y is not None:
                y = self.narrow(y) if number == 0 else y
                level = level + functional.interpolate(y, scale_factor=2.0, mode="nearest")
            y = self.smooth[number](level)
        logits: Tensor = self.head(y)
        return logits

    def fold(self) -> MaskNet:
        """Return this network, in eval mode, with every normalisation folded away."""
        self.eval()
        for module in list(self.modules()):
            if isinstance(module, Conv):
                module.fold()
        return self


@dataclass
class Network:
    """A trained network, ready for inference on one thread."""

    net: MaskNet
    """Folded, channels last."""
    metadata: dict[str, Any]
    """What the file's header holds: ``architecture`` and whatever training recorded."""
    bfloat16: bool
    """Compute in bfloat16: twice as fast where the processor multiplies it natively."""

    def maps(self, images: Sequence[Pixels]) -> list[Map]:
        """Return the foreground probability of each of (H, W, 3) uint8 RGB images.

        Each map is (128, 128) float32 in [0, 1], over the whole image: see `agreed`.
        Runs on one thread, in batches of at most `BATCH`; batches change a map by rounding only.
        """
        maps: list[Map] = []
        side = self.net.architecture.side
        with one_thread():
            for start in range(0, len(images), BATCH):
                some = images[start : start + BATCH]
                squares = np.stack([square(image, side) for image in some])
                votes = np.stack([opinions(image) for image in some])
                heard = np.stack([[resized(m, side // 2) for m in one] for one in votes])
                soft = predict(self.net, squares, heard, bfloat16=self.bfloat16)
                maps += map(agreed, squares, soft, votes.mean(axis=1))
        return maps


def agreed(pixels: Pixels, own: Map, taught: Map) -> Map:
    """Return what network and ensemble agree on, with its outline moved to the image's edges.

    pixels: (S, S, 3) uint8. own, taught: the network's and the ensemble's mean map, of any sides.
    Returns (128, 128) float32 in [0, 1].
    """
    return outlined(pixels, (resized(own, SIDE) + resized(taught, SIDE)) / np.float32(2))


def square(rgb: Pixels, side: int) -> Pixels:
    """Return (H, W, 3) pixels squeezed into (side, side, 3), by area averaging when shrinking."""
    shrinks = min(rgb.shape[:2]) >= side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (side, side), interpolation=method), np.uint8)


def predict(net: nn.Module, squares: Pixels, heard: Map, *, bfloat16: bool) -> Map:
    """Return (B, S/2, S/2) float32 probabilities.

    squares: (B, S, S, 3) uint8. heard: (B, M, S/2, S/2) float32, the ensemble members' maps.
    """
    cues = torch.from_numpy(cues_array(squares, heard))
    pixels = torch.from_numpy(np.ascontiguousarray(squares)).permute(0, 3, 1, 2).float()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = net(pixels, cues.contiguous(memory_format=torch.channels_last))
        soft: Map = torch.sigmoid(logits.float())[:, 0].contiguous().numpy()
    return soft


def cues_array(squares: Pixels, heard: Map) -> Map:
    """Return the (B, COUNT + M, S/2, S/2) `border_cues` of (B, S, S, 3) pixels, and the maps."""
    cues = np.stack([border_cues(pixels, len(pixels) // 2) for pixels in squares])
    return np.concatenate([cues, heard], axis=1)


def border_cues(rgb: Pixels, side: int) -> Map:
    """Return the (`COUNT`, side, side) float32 cues, in [0, 1], of (H, W, 3) uint8 pixels."""
    small = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2Lab).astype(np.float32)
    sides = side_distances(lab, lab.reshape(-1, 3), max(2, round(STRIP * side)))
    cues = np.empty((COUNT, side, side), np.float32)
    cues[:4] = sides.T.reshape(4, side, side)
    cues[4] = np.sort(cues[:4], axis=0)[1]  # one side may be covered by the object
    cues[5] = barrier_distance(np.ascontiguousarray(np.moveaxis(lab, 2, 0)))
    reach = np.array([REACH] * 5 + [BARRIER_REACH], np.float32)[:, None, None]
    return cues / (cues + reach)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on the calling thread only; the converter has a process for every core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def native_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 itself (AVX512-BF16 or AMX)."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return capabilities.startswith("AVX512") and bool(probe and probe())


def save_network(net: MaskNet, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a network as safetensors, architecture and ``metadata`` as JSON in the header.

    The file appears whole or not at all.
    """
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    own = {"format": FORMAT, "architecture": asdict(net.architecture), _DIGEST: _digest(tensors)}
    header = {**metadata, **own}
    content = save(tensors, {"harl_fast": json.dumps(header, sort_keys=True)})
    write_bytes(path, content)  # safetensors itself leaves a file to its owner alone


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def load_network(path: Path, *, bfloat16: bool | None = None) -> Network:
    """Return the network of a file by `save_network`; `DataError` if it is not such a file.

    bfloat16: compute in it; None means where the processor does it natively.
    """
    net, metadata = read_network(path)
    net = net.fold().to(memory_format=torch.channels_last)
    return Network(net, metadata, native_bfloat16() if bfloat16 is None else bfloat16)


def read_network(path: Path) -> tuple[MaskNet, dict[str, Any]]:
    """Return the network of a file as it was trained, and the file's metadata."""
    if not path.is_file():
        raise DataError(f"the mask network {path} is no file; {REMEDY}")
    try:
        with open_tensors(path) as file:
            header = (file.metadata() or {}).get("harl_fast")
            if header is None:
                raise DataError(
                    f"{path} is a safetensors file, but no mask network: its header has no "
                    f"'harl_fast' entry; {REMEDY}"
                )
            metadata = parse_json(header, where="header")
            if metadata.get("format") != FORMAT:
                raise DataError(
                    f"{path} has format {shown(metadata.get('format'))}, this program reads "
                    f"{FORMAT!r}; {REMEDY}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _DIGEST in metadata and metadata[_DIGEST] != _digest(tensors):  # older files have none
            raise ValueError("its weights do not match the checksum that they were saved with")
        net = MaskNet(TypeAdapter(Architecture).validate_python(metadata["architecture"]))
        net.load_state_dict(tensors)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{path} is no mask network: architecture {one_line(where)}: {first['msg']} (got "
            f"{shown(first['input'])}); {REMEDY}"
        ) from error
    except (
        ConfigError, SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError,
    ) as error:  # fmt: skip
        reason = one_line(str(error).partition("\n")[0])[:200] or type(error).__name__
        raise DataError(f"{path} is damaged or no mask network ({reason}); {REMEDY}") from error
    return net, metadata
