"""Residual networks under torchvision's names."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck

from harl_fast.config import ModelConfig
from harl_fast.model.backbone import LAST_LEVEL, Backbone

ARCHS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
"""Residual block and number of blocks per stage."""

_FEW = 16
"""Input channels below which a projection with a stride is computed without it."""


class ResNet(Backbone):
    """A ResNet (He et al., arXiv 1512.03385; v1.5 strides) without its pooling and classifier.

    Parameters and buffers carry torchvision's names; with the imagenet stem, width 1 and any
    ``last_stride`` the state dict loads into torchvision's network, which only lacks ``fc``.
    """

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        block, depths = ARCHS[model.arch]
        base = round(64 * model.width)
        self.in_channels = model.in_channels
        self.conv1 = _stem_convolution(model, base)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        pooled = model.stem == "imagenet"
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if pooled else nn.Identity()
        channels = base
        strides = (1, 2, 2, model.last_stride)
        for number, (depth, stride) in enumerate(zip(depths, strides, strict=True)):
            planes = base * 2**number
            stage = _stage(block, channels, planes, depth=depth, stride=stride)
            self.add_module(f"layer{number + 1}", stage)
            channels = planes * block.expansion
        self.out_channels = channels
        _initialise(self, zero_init_residual=model.zero_init_residual)

    def channels(self, level: int) -> int:
        """Return the channels of the map of stage 1 to 4."""
        return self.out_channels >> (LAST_LEVEL - level)

    def forward(self, x: Tensor, level: int = LAST_LEVEL) -> Tensor | tuple[Tensor, Tensor]:
        """Return the (B, C, h, h) map of (B, in_channels, S, S) images.

        level: of an earlier stage, 1 to 3, its map is returned, too, before the last.
        """
        stages = self.stages()
        for stage in stages[: level + 1]:
            x = stage(x)
        earlier = x
        for stage in stages[level + 1 :]:
            x = stage(x)
        return x if level == LAST_LEVEL else (earlier, x)

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        """Return the stem and the four stages; one after the other they are `forward`."""
        return [self._stem, *(self.get_submodule(f"layer{number}") for number in range(1, 5))]

    def _stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return out


class _Projection(nn.Conv2d):
    """A 1 x 1 convolution with a stride, computed as one without on the pixels that it meets.

    The sums are the same. In oneDNN of torch 2.14 the backward pass of the other writes outside its
    memory, if there are fewer than `_FEW` channels, channels-last (seen on AVX2 and AVX-512).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the (B, C', h, w) map of a (B, C, H, W) one."""
        rows, columns = self.stride
        return functional.conv2d(x[:, :, ::rows, ::columns], self.weight)


def _stem_convolution(model: ModelConfig, channels: int) -> nn.Conv2d:
    if model.stem == "imagenet":
        return nn.Conv2d(model.in_channels, channels, 7, stride=2, padding=3, bias=False)
    stride = 2 if model.stem == "small-s2" else 1
    padding = 2 if model.stem == "small-pad2" else 1
    return nn.Conv2d(model.in_channels, channels, 3, stride=stride, padding=padding, bias=False)


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
        kind = _Projection if channels < _FEW and stride > 1 else nn.Conv2d
        projection = kind(channels, out, 1, stride=stride, bias=False)
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
