"""Runs that are killed again and again until they end, beside the same runs left alone.

``python survival_job.py OUT DATA KILLS1 KILLS2 SEED``: so many kills on one rank and on two. It
leaves ``whole1``, ``killed1``, ``whole2`` and ``killed2`` in OUT; ``moved``, a run that goes from
two ranks to one and back, and ``still``, the same left on two; their samples of each step, a file
a rank; what a step makes of the checkpoint before each move without it (``stayed``) and, on one
rank, with every weight disturbed (``disturbed``); and ``report.json`` with all attempts.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tests.engine.support import BATCH, CPU, STEPS, tiny_file
from tests.launch.attempts import Kill, attempt

OFTEN = ("--set", "log.checkpoint_minutes=0.002")
EVERY = ("--set", "log.checkpoint_minutes=1e-9", "--set", "log.keep_last=99")
MOVES = ((2, 1, 3), (1, 0, 6), (2, 2, None))
"""Ranks, ZeRO stage, and the step before which it is killed."""


def arguments(out: Path, data: Path, name: str, *, epochs: int, more: tuple[str, ...] = ()) -> Any:
    """Return the command line that starts or resumes the run in the folder ``name``."""
    line = ["--deepspeed_config", CPU, "--data", data, "--run", out / name]
    line += ["--engine-set", f"train_batch_size={BATCH}", *more]
    if (out / name / "config.yaml").is_file():
        return [*line, "--resume"]
    return [*line, "--config", tiny_file(out), "--epochs", str(epochs)]


def micro(ranks: int, stage: int) -> tuple[str, ...]:
    """Return settings under which each step's micro batches are the same on one rank and two."""
    size = BATCH // 2
    values = {"train_micro_batch_size_per_gpu": size, "gradient_accumulation_steps": 2 // ranks}
    values["zero_optimization.stage"] = stage
    return tuple(w for key, value in values.items() for w in ("--engine-set", f"{key}={value}"))


def latest(folder: Path) -> int:
    """Return the step of a run's latest checkpoint; 0 if there is none."""
    path = folder / "checkpoints" / "latest"
    return int(path.read_text().strip().removeprefix("step-")) if path.is_file() else 0


def kill_often(out: Path, data: Path, *, ranks: int, kills: int, seed: int) -> list[dict[str, Any]]:
    """Kill a run so often, at random, and let it end; return what happened."""
    draw, report, start_s = random.Random(seed), [], 1.0
    epochs, name = 6 + 2 * kills, f"killed{ranks}"  # more steps than all starts together do
    for number in range(kills + 1):
        kind = ("step", "save", "time", "last")[number % 3 if number < kills else 3]
        rank, at = draw.randrange(ranks), latest(out / name)
        kill = {
            "step": Kill("step", at + draw.randrange(4), rank=rank),
            "save": Kill("save", draw.randrange(20)),
            "time": Kill("time", draw.uniform(0.0, 1.2 * start_s), rank=rank, latest=at + STEPS),
            "last": None,
        }[kind]
        line = arguments(out, data, name, epochs=epochs, more=OFTEN)
        begin = time.monotonic()
        codes = attempt(line, ranks=ranks, log=out / "log", kill=kill)
        if kind == "step":
            start_s = time.monotonic() - begin
        report.append({"kind": kind, "from": at, "to": latest(out / name), "codes": codes})
    whole = arguments(out, data, f"whole{ranks}", epochs=epochs)
    codes = attempt(whole, ranks=ranks, log=out / "log")
    return [*report, {"kind": f"whole{ranks}", "codes": codes}]


def stay(out: Path, data: Path, *, move: int) -> None:
    """Do the step after a move at the old place too, and on one rank with disturbed weights."""
    ranks, stage, _ = MOVES[move - 1]
    for name, place, disturbed in (("stayed", (ranks, stage), False), ("disturbed", (1, 0), True)):
        shutil.copytree(out / "moved", out / f"{name}-{move}")
        line = arguments(out, data, f"{name}-{move}", epochs=2, more=(*EVERY, *micro(*place)))
        # The step's checkpoint is complete when the next one is begun.
        kill = Kill("step", latest(out / "moved") + 2)
        attempt(line, ranks=place[0], log=out / "log", kill=kill, disturbed=disturbed)


def main(out: Path, data: Path, kills1: int, kills2: int, seed: int) -> None:
    """Run all of them."""
    report = {
        str(n): kill_often(out, data, ranks=n, kills=k, seed=seed)
        for n, k in ((1, kills1), (2, kills2))
    }
    moved = []
    for ranks, stage, at in MOVES:
        if moved:
            stay(out, data, move=len(moved))
        line = arguments(out, data, "moved", epochs=2, more=(*EVERY, *micro(ranks, stage)))
        kill = None if at is None else Kill("step", at)
        ids = out / f"moved-{len(moved)}"
        codes = attempt(line, ranks=ranks, log=out / "log", kill=kill, ids=ids)
        moved.append({"to": latest(out / "moved"), "codes": codes})
    line = arguments(out, data, "still", epochs=2, more=(*EVERY, *micro(2, 1)))
    attempt(line, ranks=2, log=out / "log", ids=out / "still")
    (out / "report.json").write_text(json.dumps({**report, "moved": moved}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
