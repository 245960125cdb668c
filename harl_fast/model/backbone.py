"""Residual networks that return their last feature map."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from harl_fast.errors import ConfigError, nearest

ARCHS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
STEMS = {"imagenet": 2, "small-s2": 1, "small": 0}
"""How often each stem halves the side of its input."""


class Backbone(nn.Module):
    """A ResNet (He et al., arXiv 1512.03385; v1.5 strides) without its pooling and classifier.

    Parameters and buffers carry torchvision's names; with the imagenet stem, width 1 and any
    ``last_stride`` the state dict loads into torchvision's network, which only lacks ``fc``.
    """

    out_channels: int
    """Channels C of the returned map."""

    def __init__(
        self, arch: str, *, stem: str, width: float, last_stride: int, zero_init_residual: bool
    ) -> None:
        super().__init__()
        block, depths = ARCHS[_known("arch", arch, ARCHS)]
        base = round(64 * width)
        if base < 1:
            raise ConfigError(f"width {width} leaves no channel of 64; use 0.125 or more")
        self.conv1 = _stem_convolution(_known("stem", stem, STEMS), base)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        channels = base
        strides = (1, 2, 2, _checked_last_stride(last_stride))
        for number, (depth, stride) in enumerate(zip(depths, strides, strict=True)):
            planes = base * 2**number
            stage = _stage(block, channels, planes, depth=depth, stride=stride)
            self.add_module(f"layer{number + 1}", stage)
            channels = planes * block.expansion
        self.out_channels = channels
        _initialise(self, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        """Return the (B, C, h, w) map of (B, 3, S, S) images; h and w as in `feature_size`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return x


def build_backbone(
    arch: str,
    *,
    stem: str = "imagenet",
    width: float = 1.0,
    last_stride: int = 2,
    zero_init_residual: bool = False,
) -> Backbone:
    """Return a freshly initialised network.

    arch: resnet18, 34, 50, 101 or 152. stem: imagenet (7x7 stride 2, max-pool), small-s2 (3x3
    stride 2) or small (3x3 stride 1). width: multiplies all channel counts. last_stride: 1 keeps
    the last stage at the size of the one before. Raises ConfigError.
    """
    return Backbone(
        arch,
        stem=stem,
        width=width,
        last_stride=last_stride,
        zero_init_residual=zero_init_residual,
    )


def feature_size(arch: str, *, stem: str, last_stride: int, size_px: int) -> int:
    """Return the side h of the map that `build_backbone`'s network makes of size_px images."""
    _known("arch", arch, ARCHS)
    halvings = STEMS[_known("stem", stem, STEMS)]
    halvings += 3 if _checked_last_stride(last_stride) == 2 else 2
    # Every strided layer here is padded so that a side n becomes ceil(n / 2).
    return -(-size_px // (1 << halvings))


def _stem_convolution(stem: str, channels: int) -> nn.Conv2d:
    if stem == "imagenet":
        return nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
    return nn.Conv2d(3, channels, 3, stride=2 if stem == "small-s2" else 1, padding=1, bias=False)


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    channels: int,
    planes: int,
    *,
    depth: int,
    stride: int,
) -> nn.Sequential:
    out = planes * block.expansion
    shortcut = None
    if stride != 1 or channels != out:
        projection = nn.Conv2d(channels, out, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(projection, nn.BatchNorm2d(out))
    first = block(channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(out, planes) for _ in range(1, depth)))


def _initialise(network: nn.Module, *, zero_init_residual: bool) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.zeros_(last.weight)


def _known(what: str, name: str, valid: Collection[str]) -> str:
    if name not in valid:
        raise ConfigError(f"{what} '{name}' is none of {', '.join(valid)}{nearest(name, valid)}")
    return name


def _checked_last_stride(stride: int) -> int:
    if stride not in (1, 2):
        raise ConfigError(f"last_stride {stride} is neither 1 nor 2")
    return stride
