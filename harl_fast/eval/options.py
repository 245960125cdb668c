"""What programs around an encoder share, without torch: options, protocols, metrics' names."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from harl_fast.config import LARGEST_PX, SMALLEST_PX
from harl_fast.errors import ConfigError, shown
from harl_fast.options import check_whole, per_channel, whole_number

PROTOCOLS = {
    "cached": "24 heads by SGD",
    "logreg": "logistic regression for 45 C",
    "imagenet": "random crops and flips, 5 rates side by side",
}
"""By name, with a few words for the help."""
EPOCHS, BATCH = 100, 256
"""Passes over the features of `cached`; images in one encoder pass."""
CROP, SMALL_PX = 0.875, 32
"""Side of the central square that is seen, as a share of the shorter side of the picture. Images of
at most so many pixels are seen whole, as SimCLR does on CIFAR-10."""
NEIGHBOURS = (10, 20, 50, 100, 200)
"""Each k of k-NN."""
TEMPERATURE = 0.07
"""Of k-NN's votes."""
MEANS, STDS = (0.0, 1.0), (0.01, 1.0)
"""Ranges of the values of a normalisation."""
METRICS = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
"""Names of the metrics as they are printed."""
_KEPT = ("cached", "logreg")
"""Protocols that extract features once."""
ONLY: dict[str, tuple[str, ...]] = {
    "--epochs": ("cached", "imagenet"),
    **dict.fromkeys(("--cache", "--knn", "--knn-temperature", "--out", "--pictures"), _KEPT),
    **dict.fromkeys(("--deepspeed_config", "--preset"), ("imagenet",)),
}
"""Protocols that an option belongs to; what is not here belongs to all."""


def input_options() -> dict[str, dict[str, Any]]:
    """Return what argparse is to know of the options on how images become a --ckpt's inputs."""
    size, channels = whole_number(SMALLEST_PX, LARGEST_PX), "X,.."
    own = "default: the checkpoint's"
    return {
        "--size-px": {"type": size, "metavar": "N", "help": f"side of the images ({own})"},
        "--mean": {
            "type": per_channel(*MEANS),
            "metavar": channels,
            "help": f"normalisation of values in [0, 1], one per channel ({own})",
        },
        "--std": {"type": per_channel(*STDS), "metavar": channels, "help": "and its scale"},
    }


def check_inputs(
    mean: Sequence[float] | None, std: Sequence[float] | None, size_px: int | None
) -> None:
    """Raise ConfigError for what `input_options` would not take; None is taken."""
    if size_px is not None:
        check_whole(SMALLEST_PX, LARGEST_PX, size_px=size_px)
    for name, values, (low, high) in (("mean", mean, MEANS), ("std", std, STDS)):
        try:
            good = values is None or (len(values) > 0 and all(low <= v <= high for v in values))
        except TypeError:
            good = False
        if not good:
            raise ConfigError(
                f"{name} {shown(values)}: give a list of numbers from {low:g} to {high:g}, one per "
                f"channel of images whose values are in [0, 1]"
            )


def usual_crop(size_px: int) -> float:
    """Return the crop that images of ``size_px`` are judged with unless another is asked for."""
    return 1.0 if size_px <= SMALL_PX else CROP


def check_options(protocol: str, given: Container[str]) -> None:
    """Raise ConfigError for an option that does not belong to a protocol.

    given: names of the options on the command line, as argparse writes them (``knn_temperature``).
    """
    for option, protocols in ONLY.items():
        if option.removeprefix("--").replace("-", "_") in given and protocol not in protocols:
            raise ConfigError(
                f"{option} belongs to --protocol {' and '.join(protocols)}, {protocol} has no use "
                f"for it: leave it out, or choose another protocol"
            )
