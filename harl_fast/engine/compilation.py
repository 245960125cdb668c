"""Networks compiled by torch.compile."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile

import torch

from harl_fast.errors import ConfigError, one_line
from harl_fast.model.harl import HARL

_FULL = errno.ENOSPC, errno.EDQUOT


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


def compiler_failure(error: BaseException) -> str:
    """Return what to say of torch's compiler where its error tells of a file or a disk, or ""."""
    inner = getattr(error, "inner_exception", None)  # of `torch._dynamo.exc.BackendCompilerFailed`
    if isinstance(inner, OSError):
        said = str(inner)
    else:  # an error of g++ or nvcc, or one that another process has written down
        output = getattr(inner, "output", None)
        lines = str(inner if output is None else output).splitlines()
        full = [line for line in lines if any(os.strerror(number) in line for number in _FULL)]
        wrong = [line for line in lines if output is not None and "error:" in line]
        said = next(iter(full or wrong), "")
    if not said:
        return ""
    places = tempfile.gettempdir(), os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    room = [
        f"{one_line(place)} ({shutil.disk_usage(place).free / 1e6:,.0f} MB free)"
        for place in places
        if os.path.isdir(place)
    ]
    return (
        f"model.compile: torch's compiler failed: {one_line(said.strip())[:200]}. It writes into "
        f"{' and '.join(room)}: free space there; or name other folders in the environment "
        f"variables TMPDIR and TORCHINDUCTOR_CACHE_DIR; or set model.compile=false"
    )
