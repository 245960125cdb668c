"""The data path: containers, masks, view geometry, decoding, loaders, colours."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numba
import torch

_COMPILED = (
    *("../rng.py", "geometry.py", "resample.py", "jpegfile.py"),
    *("pixelops.py", "colour.py", "cut.py", "decode.py"),
)


@contextlib.contextmanager
def _machine_code_cache() -> Iterator[None]:
    """Let numba keep the modules imported here in a folder that all their sources name.

    numba checks only the file of the cached function itself, so a changed crop rule would go on
    running from the cached decoder that has it inlined.
    """
    digest = hashlib.sha256("".join(metadata.version(n) for n in ("numba", "ffcv")).encode())
    for name in _COMPILED:
        digest.update((Path(__file__).parent / name).read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    if not os.access(home if home.exists() else home.parent, os.W_OK):
        home = Path(tempfile.mkdtemp())  # ours alone: code is loaded from there
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = before or str(home / "harl_fast" / digest.hexdigest()[:16])
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


_threads = torch.get_num_threads()
with _machine_code_cache():
    import harl_fast.data.colour
    import harl_fast.data.decode  # noqa: F401

torch.set_num_threads(_threads)  # importing ffcv sets it to one
