"""Change the scale of an encoder's convolutions, not what it computes: `--help`.

Encoders of different weight decay differ in the norms of their kernels, which BatchNorm hides: the
function is the same, but a step of SGD of one learning rate turns large kernels less. Fine-tuning
recipes then do not carry over (SimCLR's v1 kernels are 16.8 times v2's; its README, known issues).
LARS, whose steps are relative to each layer's norm, takes the same ones while they are small. For
each convolution W with its BatchNorm (mean, var, gamma):

    W' = c W,  mean' = c mean,  var' = c^2 var,
    gamma' = gamma sqrt(c^2 var + eps) / (c sqrt(var + eps))
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.errors import ConfigError, OutputError, one_line
from harl_fast.eval.options import input_options
from harl_fast.options import Parser, number

if TYPE_CHECKING:
    from torch import nn

    from harl_fast.engine.networks import Pretrained

CLOSE = 1e-5
"""How far features may move, in shares of the largest: rounding alone."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = Parser(
        prog="python -m harl_fast.tools.rescale",
        description="Multiply an encoder's convolutions by a factor, or give them the norms of "
        "another's, without changing its features, and write it as `make export` does.",
    )
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="run, exported folder or other file of weights")
    by = parser.add_mutually_exclusive_group()
    by.add_argument("--factor", type=number(1e-3, 1e3), metavar="C", help="of all convolutions")
    by.add_argument("--like", type=Path, metavar="B", help="take each one's norm from B's")
    add("--out", type=Path, metavar="FOLDER", help="new folder; left out, norms are printed only")
    for option, settings in input_options().items():
        add(option, **settings)
    return parser.parse_args(argv)


def pairs(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    """Yield each convolution of a ResNet, its name first, with the BatchNorm behind it."""
    from torch import nn

    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            path, _, last = name.rpartition(".")
            norm = last.replace("conv", "bn") if last.startswith("conv") else "1"
            behind = network.get_submodule(f"{path}.{norm}" if path else norm)
            assert isinstance(behind, nn.BatchNorm2d)
            yield name, layer, behind


def rescale(network: nn.Module, factors: Mapping[str, float]) -> None:
    """Multiply convolutions of a ResNet in place, by their names; the function stays the same."""
    import torch

    with torch.no_grad():
        for name, conv, norm in pairs(network):
            c = factors[name]
            mean, var = norm.running_mean, norm.running_var
            assert mean is not None and var is not None
            before = (var.double() + norm.eps).sqrt()
            var.mul_(c * c)
            after = (var.double() + norm.eps).sqrt()
            norm.weight.copy_(norm.weight.double() * after / (c * before))
            mean.mul_(c)
            conv.weight.mul_(c)


def rescaled(pretrained: Pretrained, factors: Mapping[str, float], *, about: str) -> Pretrained:
    """Return a rescaled copy; OutputError if its features are not the same.

    about: a few words for its receipt.
    """
    import copy

    import torch

    from harl_fast.model.weightfile import digest
    from harl_fast.tools.forms import apart, example

    network = copy.deepcopy(pretrained.backbone)
    rescale(network, factors)
    with torch.inference_mode():
        images = example(pretrained)
        before, after = pretrained.backbone(images), network(images)
    distance = apart(after, before)
    if not distance <= CLOSE:
        raise OutputError(
            f"rescaled features are {distance:.1e} of the largest apart, at most {CLOSE:.0e} is "
            f"rounding: choose a factor nearer to 1"
        )
    receipt = replace(pretrained.receipt, source=f"{pretrained.receipt.source}, {about}")
    changed = digest(network.native.state_dict())
    return replace(pretrained, backbone=network, receipt=receipt, weights_sha256=changed)


def norms(network: nn.Module) -> dict[str, float]:
    """Return the Euclidean norm of each convolution's kernel."""
    return {name: float(conv.weight.detach().double().norm()) for name, conv, _ in pairs(network)}


def main(argv: list[str] | None = None) -> int:
    """Print the norms and write; return the exit code."""
    args = parse(argv)
    from harl_fast.engine.networks import load_pretrained
    from harl_fast.model.resnet import ResNet
    from harl_fast.tools.export import check_out, write

    if args.out is not None:
        check_out(args.out, option="--out")
        if args.factor is None and args.like is None:
            raise ConfigError("--out needs --factor C or --like B: by what is to be multiplied")
    seen = {"mean": args.mean, "std": args.std, "size_px": args.size_px}
    pretrained = load_pretrained(args.ckpt, **seen)
    other = None if args.like is None else load_pretrained(args.like)
    for each in (pretrained, other):
        if each is not None and not isinstance(each.backbone, ResNet):
            raise ConfigError(f"{each.source} is {each.model.arch}; only ResNets are rescaled")
    own = norms(pretrained.backbone)
    if other is None:
        factors, about = dict.fromkeys(own, args.factor or 1.0), f"convolutions x {args.factor}"
    else:
        factors, about = _towards(pretrained, other), f"norms of {other.receipt.source}"
    width = max(map(len, own))
    print(f"{'convolution':{width}}  {'norm':>9}  {'to be':>9}  {'ratio':>9}")
    for name, norm in own.items():
        c = factors[name]
        print(f"{name:{width}}  {norm:9.4g}  {norm * c:9.4g}  {c:9.4g}")
    mean = math.exp(sum(map(math.log, factors.values())) / len(factors))
    print(f"{'geometric mean of the ratios':{width + 24}}{mean:9.4g}")
    if args.out is not None:
        told = write(rescaled(pretrained, factors, about=about), args.out, to="folder")
        print(one_line(told))
    return 0


def _towards(pretrained: Pretrained, other: Pretrained) -> dict[str, float]:
    """Return the factor of each convolution that gives it the norm of another network's."""
    own, wanted = norms(pretrained.backbone), norms(other.backbone)
    keys = ("arch", "width", "stem", "in_channels")
    for key in keys:
        first, second = (getattr(each.model, key) for each in (pretrained, other))
        if first != second:
            raise ConfigError(
                f"--like {other.source} has {key} {second}, --ckpt {pretrained.source} has "
                f"{first}: give one of the same network"
            )
    for name in own:
        if own[name] == 0.0 or wanted[name] == 0.0:
            raise ConfigError(f"{name} is 0 in one of the two networks: no factor leads there")
    return {name: wanted[name] / own[name] for name in own}


if __name__ == "__main__":
    harl_fast.program.run_main(main)
