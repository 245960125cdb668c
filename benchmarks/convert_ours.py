"""Our conversion as the benchmark runs it: the whole program, but for the interpreter's start."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocess.beton import main


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, None]]:
    """Yield (images, None) after each conversion of the same images, for ever.

    The processes that workers are forked from start within the first, which is not counted.
    """
    out = Path(settings["out"])
    argv = ["--out", str(out), "--workers", str(settings["workers"]), *settings["options"]]
    while True:
        shutil.rmtree(out, ignore_errors=True)
        main(argv)
        yield settings["count"], None
