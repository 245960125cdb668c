"""Networks compiled by torch.compile."""

from __future__ import annotations

import torch

from harl_fast.errors import ConfigError
from harl_fast.model.harl import HARL


def compile_networks(harl: HARL, *, sizes: int) -> None:
    """Compile both networks, once per size of views: code of fixed shapes is faster.

    torch does it at their first use. Raises ConfigError if they are on a CPU and a compiler is
    missing.
    """
    if next(harl.parameters()).device.type == "cpu":
        _check_compiler()
    # Online and target share their functions, of which torch keeps 8 versions by default and then
    # runs uncompiled: from a fifth size on.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 2 * sizes + 2)
    for network in (harl, harl.target):
        for child in network.children():
            child.compile(dynamic=False)


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # its import takes a second

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise ConfigError(
            f"model.compile: {error}. Install g++, name another compiler in the environment "
            f"variable CXX, or set model.compile=false"
        ) from error


def compiled_graphs() -> int:
    """Return how many graphs torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
