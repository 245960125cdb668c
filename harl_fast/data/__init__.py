"""The data path: containers, masks, view geometry, decoding, loaders, colours."""

import atexit
import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numba
import torch

_log = logging.getLogger(__name__)

_COMPILED = (
    *("../rng.py", "geometry.py", "resample.py", "jpegfile.py", "imagefield.py"),
    *("pixelops.py", "colour.py", "cut.py", "decode.py"),
)
"""Files with compiled functions, and with constants that are part of their machine code."""


@contextlib.contextmanager
def _machine_code_cache() -> Iterator[None]:
    """Let numba keep the modules imported here in a folder that all their sources name.

    numba checks only the file of the cached function itself, so a changed crop rule would go on
    running from the cached decoder that has it inlined.
    """
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = before or str(_cache_folder())
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def _cache_folder() -> Path:
    """Return a folder for machine code: the user's, or with a warning one of this process alone."""
    digest = hashlib.sha256("".join(metadata.version(n) for n in ("numba", "ffcv")).encode())
    for name in _COMPILED:
        digest.update((Path(__file__).parent / name).read_bytes())
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "harl_fast" / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        problem = f"{folder} cannot be written to"
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        problem = str(error)
    _log.warning(
        "no place to keep compiled code (%s): each process compiles the decoder again, half a "
        "minute or more. Set XDG_CACHE_HOME to a folder that can be written to",
        problem,
    )
    alone = tempfile.mkdtemp(prefix="harl_fast-")  # ours alone: code is loaded from there
    atexit.register(shutil.rmtree, alone, ignore_errors=True)
    return Path(alone)


_threads = torch.get_num_threads()
with _machine_code_cache():
    import harl_fast.data.colour
    import harl_fast.data.decode  # noqa: F401

torch.set_num_threads(_threads)  # importing ffcv sets it to one
