"""One measurement in a fresh process: peak memory of our loader, or time to its first batch.

`python -m benchmarks.solo memory|start '<settings JSON>'` prints one JSON line.
"""

from __future__ import annotations

import time

STARTED = time.time()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from collections.abc import Mapping  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.process import answer, memory_bytes  # noqa: E402

BATCHES = 8
_PERIOD_S = 0.005


class _Peak(threading.Thread):
    """Watches memory: highest anonymous (with shared) and highest file-backed bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = self.file = 0
        self.over = threading.Event()

    def look(self) -> None:
        """Take one reading."""
        now = memory_bytes()
        self.anonymous = max(self.anonymous, now["RssAnon"] + now["RssShmem"])
        self.file = max(self.file, now["RssFile"])

    def run(self) -> None:
        while not self.over.wait(_PERIOD_S):
            self.look()


def memory(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return bytes before (everything imported), at the peak, and what the buffers need."""
    from benchmarks import ours

    before = memory_bytes()
    peak = _Peak()
    peak.start()
    items = ours.batches(dict(settings))
    taken, buffer = 0, 0
    for count, batch in items:
        if count:
            parts = (*batch.views, *batch.cells, batch.labels, batch.ids)
            buffer = sum(part.numel() * part.element_size() for part in parts)
            taken += 1
        if taken == BATCHES:
            break
    peak.over.set()
    peak.join()
    peak.look()
    after = memory_bytes()
    return {
        "anonymous before": before["RssAnon"] + before["RssShmem"],
        "anonymous peak": peak.anonymous,
        "file before": before["RssFile"],
        "file peak": peak.file,
        "VmHWM before": before["VmHWM"],
        "VmHWM": after["VmHWM"],
        "buffer": buffer,
        "buffers needed": settings.get("ahead", 3) + 1,
        "batches": taken,
    }


def start(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return seconds from construction, and from the process' start, to the first batch."""
    from benchmarks import ours

    begun = time.perf_counter()
    for count, _ in ours.batches(dict(settings)):
        if count:
            break
    return {"construct": time.perf_counter() - begun, "imports": time.time() - STARTED}


def measure(what: str, settings: Mapping[str, Any], *, threads: int, log: Path) -> dict[str, Any]:
    """Run one measurement in a fresh process; adds ``process``: seconds from its birth.

    Raises RuntimeError, naming the log, when the process fails.
    """
    threads_of = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": str(threads)}
    words = [what, json.dumps(settings), str(time.time())]
    return answer("benchmarks.solo", words, environment=threads_of, log=log)


if __name__ == "__main__":
    result = {"memory": memory, "start": start}[sys.argv[1]](json.loads(sys.argv[2]))
    result["process"] = time.time() - float(sys.argv[3])
    print(json.dumps(result), flush=True)
    os._exit(0)  # the loader's thread is still at work
