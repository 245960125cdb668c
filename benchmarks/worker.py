"""A contender's process: answers "run for T seconds" with (samples, seconds), and "check".

`python -m benchmarks.worker '<settings JSON>'`, one JSON line a command and an answer.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from harl_fast.supervision import end_with_parent

Items = Iterator[tuple[int, Any]]


def steady(
    items: Items, *, lead: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[int, float]:
    """Return (samples, seconds) of a loader's steady state.

    items: (samples, batch) for ever; 0 samples open an epoch. The first ``lead`` batches of a turn
    and of an epoch are taken but not counted: they were made ahead, or touch new buffers, which is
    a matter of the first seconds of an epoch of hours. What is counted is the time from one batch
    to the next, until ``seconds`` of it have passed.
    """
    lead = max(1, lead)  # there is no time before the first batch
    samples, passed, last, skip = 0, 0.0, 0.0, lead
    for count, _ in items:
        now = clock()
        if count == 0:
            skip = lead
            continue
        if skip > 0:
            skip -= 1
        else:
            samples, passed = samples + count, passed + now - last
            if passed >= seconds:
                break
        last = now
    return samples, passed


def typical(
    items: Items, *, lead: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[int, float]:
    """Return (samples, seconds) with the median of the times from one item to the next.

    For steps of equal work: one that the machine disturbed does not count. ``lead`` items of a turn
    are taken first; at least three are measured. All items must hold equally many samples.
    """
    samples = 0
    for _ in range(max(1, lead)):
        next(items)
    times: list[float] = []
    begun = last = clock()
    while last - begun < seconds or len(times) < 3:
        count, _ = next(items)
        now = clock()
        samples, last, passed = samples + count, now, now - last
        times.append(passed)
    return samples, statistics.median(times) * len(times)


def main() -> None:
    """Serve commands from standard input until it ends."""
    end_with_parent(signal.SIGKILL)  # stopped or not
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    settings = json.loads(sys.argv[1])
    module = importlib.import_module(f"benchmarks.{settings['module']}")
    items: Items = module.batches(settings)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "run":
            measure = typical if settings.get("steps") else steady
            samples, passed = measure(items, lead=settings["lead"], seconds=command["seconds"])
            answer: dict[str, Any] = {"samples": samples, "seconds": passed}
        elif settings.get("steps"):
            answer = {"figures": [next(items)[1] for _ in range(command["batches"])]}
        else:
            from benchmarks.check import describe

            answer = describe(items, batches=command["batches"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
