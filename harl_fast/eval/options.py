"""What launch/lineval.py says and reports, without torch: protocols, defaults, metrics' names."""

from __future__ import annotations

from collections.abc import Container

from harl_fast.errors import ConfigError

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
METRICS = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
"""Names of the metrics as they are printed."""
_KEPT = ("cached", "logreg")
"""Protocols that extract features once."""
ONLY: dict[str, tuple[str, ...]] = {
    "--epochs": ("cached",),
    **dict.fromkeys(("--batch", "--cache", "--knn", "--knn-temperature", "--out"), _KEPT),
    **dict.fromkeys(("--deepspeed_config", "--preset"), ("imagenet",)),
}
"""Protocols that an option belongs to; what is not here belongs to all."""


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
