"""Run a network in onnxruntime, in a process of its own.

What crashes there (a kernel that the processor lacks) then ends no export.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harl_fast.errors import OutputError, one_line

Batch = Any  # a NumPy array of float32
_PROGRAM = [sys.executable, "-m", "harl_fast.tools.onnx_run"]
_PATIENCE_S = 600.0


class NotRunError(Exception):
    """onnxruntime is not there, or cannot run on this machine; the message says which."""


def run_apart(model: Path, batches: Sequence[Batch]) -> tuple[str, list[Batch]]:
    """Return onnxruntime's version, and all outputs for each batch of images in turn.

    Raises NotRunError, or OutputError if it refuses the network.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise NotRunError(
            "not tried in onnxruntime, which is not installed (pip install -e '.[export]')"
        )
    with tempfile.TemporaryDirectory(prefix="harl_fast_onnx_") as name:
        given, out = Path(name) / "images.npz", Path(name) / "found.npz"
        np.savez(given, *batches)
        command = [*_PROGRAM, *map(str, (model, given, out))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise NotRunError(
                f"not compared: onnxruntime had no answer after {_PATIENCE_S:.0f} s"
            ) from error
        if done.returncode < 0:
            ended = signal.Signals(-done.returncode).name
            raise NotRunError(f"not compared: {ended} ended onnxruntime on this machine")
        if done.returncode:
            reason = one_line(done.stderr.strip().rpartition("\n")[2])
            raise OutputError(f"onnxruntime refuses the export: {reason}: nothing is written")
        with np.load(out, allow_pickle=False) as file:
            return done.stdout.strip(), list(file.values())


def _main(model: str, given: str, out: str) -> None:
    import onnxruntime

    # It refuses names of files that are not UTF-8.
    content = Path(model).read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with np.load(given, allow_pickle=False) as batches:
        found = [session.run(None, {"images": batch}) for batch in batches.values()]
    np.savez(out, *(array for arrays in found for array in arrays))
    print(onnxruntime.__version__)


if __name__ == "__main__":
    _main(*sys.argv[1:])
