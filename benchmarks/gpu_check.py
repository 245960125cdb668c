"""`make gpu-check`: what only a GPU can prove, in eight minutes on one and without a network.

Sections run one after another, each in a process with a time limit of its own, whatever became of
those before. What each finds stands in OUT/sections.jsonl as soon as it has ended. The exit code is
1 if a bar was missed, or a section failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from benchmarks.gpu_sections import SECTIONS, CheckSettings, read_findings
from benchmarks.process import machine_facts
from benchmarks.report import Row, bar_table
from benchmarks.results import write_results
from harl_fast.errors import ConfigError
from harl_fast.files import Progress, check_output, format_seconds, write_text
from harl_fast.options import checked
from harl_fast.program import run_main
from harl_fast.steps import ROOT
from harl_fast.supervision import adopt_orphans

TOTAL_S = 480.0
"""Of all sections that need one GPU."""
SLOWER = 4.0
"""How many times longer the reduced form on a CPU may take, where compilers have one core."""
LEAST_S = 5.0
"""A section that has less time left is not begun."""


@dataclass
class Outcome:
    """What became of a section."""

    section: int
    name: str
    state: str
    """done, failed, late (over its limit) or skipped."""
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def missed(self) -> list[Row]:
        """The bars that were missed."""
        return [row for row in self.rows if row.verdict == "MISSED"]

    @property
    def good(self) -> bool:
        """Whether it does not fail the check."""
        failed = self.state in ("failed", "late") or bool(self.missed)
        return not (failed and SECTIONS[self.section].fatal)

    def line(self) -> str:
        """Return it as one line of JSON."""
        rows = [asdict(row) | {"verdict": row.verdict} for row in self.rows]
        return json.dumps(asdict(self) | {"rows": rows})


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    listed = ", ".join(f"{number} {section.name}" for number, section in enumerate(SECTIONS))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__, epilog=f"Sections: {listed}"
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/gpu-check"), help="folder (%(default)s)")
    about = "cpu: a reduced form that proves the script, no GPU"
    add("--device", choices=["cuda", "cpu"], default="cuda", help=about)
    every = tuple(range(len(SECTIONS)))
    add("--only", type=checked(sections), default=every, metavar="0,1", help="sections (all)")
    about = "containers in place of the demo set that section 0 draws"
    add("--data", type=Path, metavar="FOLDER", help=about)
    return parser.parse_args(argv)


def sections(text: str) -> tuple[int, ...]:
    """Return the sections that a text names. Raises ValueError."""
    known = {str(number): number for number in range(len(SECTIONS))}
    if unknown := sorted(set(text.split(",")) - set(known)):
        raise ValueError(f"{', '.join(unknown)} is none of {', '.join(known)}")
    return tuple(sorted({known[name] for name in text.split(",")}))


def gpus_for(device: str) -> int:
    """Return how many GPUs the check has. Raises ConfigError if there is none to check."""
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not found:
        raise ConfigError(
            "there is no CUDA device here (see `make doctor`): give --device cpu for the reduced "
            "form, which proves the script alone"
        )
    return found if device == "cuda" else 0


def limits(chosen: Sequence[int], *, gpus: int) -> dict[int, float]:
    """Return the time limits of those sections that can run, by number."""
    slower = 1.0 if gpus else SLOWER
    able = [number for number in chosen if not lacking(number, gpus=gpus)]
    return {number: slower * SECTIONS[number].limit_s for number in able}


def lacking(number: int, *, gpus: int) -> str:
    """Return why a section cannot run, or nothing."""
    section = SECTIONS[number]
    if section.gpus <= gpus:
        return ""
    return f"needs {section.gpus} GPUs or more, and there {'is' if gpus == 1 else 'are'} {gpus}"


def run(number: int, settings: CheckSettings, *, limit_s: float, progress: Progress) -> Outcome:
    """Run a section to its end, or to its limit, and return what it found."""
    section, out = SECTIONS[number], Path(settings.out)
    found, log = out / f"section-{number}.jsonl", out / f"section-{number}.log"
    command = [sys.executable, "-m", "benchmarks.gpu_sections", str(number), section.work]
    begun, counted = time.monotonic(), progress.done

    def tick() -> bool:
        """Show the progress; return whether there is time left."""
        passed = time.monotonic() - begun
        progress.advance(counted + min(int(passed), int(limit_s)) - progress.done)
        return passed < limit_s

    with open(found, "wb") as lines, open(log, "wb") as messages:
        told = json.dumps(vars(settings))
        code = wait([*command, told], lines, messages, going_on=tick)
    state, reason = "done", ""
    if code is None:
        state, reason = "late", f"ended after {limit_s:.0f} s; see {log}"
    elif code:
        state, reason = "failed", f"ended with {code}: {last_line(log)}; see {log}"
    rows, facts = read_findings(found)
    passed = round(time.monotonic() - begun, 1)
    return Outcome(number, section.name, state, reason, passed, rows, facts)


def wait(
    command: Sequence[str], out: BinaryIO, messages: BinaryIO, *, going_on: Callable[[], bool]
) -> int | None:
    """Return the exit code of a command, None if it was ended; with it ends all it has started."""
    before = set(psutil.Process().children(recursive=True))
    child = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=messages)
    try:
        while child.poll() is None and going_on():
            time.sleep(0.1)
        return child.poll()
    finally:
        end(set(psutil.Process().children(recursive=True)) - before)
        child.wait()


def end(processes: Collection[psutil.Process]) -> None:
    """End processes at once, and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def last_line(log: Path) -> str:
    """Return the last line of a log, which names the error."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")


def check(chosen: Sequence[int], settings: CheckSettings, *, gpus: int) -> list[Outcome]:
    """Run the sections, append each one's line to OUT/sections.jsonl, and return what was found."""
    listed = Path(settings.out) / "sections.jsonl"
    write_text(listed, "")
    allowed = limits(chosen, gpus=gpus)
    left_s, outcomes = TOTAL_S if gpus else SLOWER * TOTAL_S, []
    before = 0.0  # what the sections so far were allowed
    with Progress(round(sum(allowed.values())), label="gpu-check", unit="s at most") as progress:
        for number in chosen:
            section = SECTIONS[number]
            limit_s = allowed.get(number, 0.0)
            limit_s = limit_s if section.gpus > 1 else min(limit_s, left_s)
            if number not in allowed:
                why = lacking(number, gpus=gpus)
                outcome = Outcome(number, section.name, "skipped", why)
            elif limit_s < LEAST_S:
                why = "the sections before took all the time that there is"
                outcome = Outcome(number, section.name, "late", why)
            else:
                outcome = run(number, settings, limit_s=limit_s, progress=progress)
            left_s -= outcome.seconds if section.gpus <= 1 else 0.0
            before += allowed.get(number, 0.0)
            progress.advance(round(before) - progress.done)
            outcomes.append(outcome)
            with open(listed, "a", encoding="utf-8") as stream:
                stream.write(outcome.line() + "\n")
            print(summary(outcome), flush=True)
    return outcomes


def summary(outcome: Outcome) -> str:
    """Return what became of a section as one line."""
    state = f"{len(outcome.missed)} missed" if outcome.missed else outcome.state
    if outcome.state in ("failed", "late") or outcome.missed:
        state += "" if SECTIONS[outcome.section].fatal else " (does not count)"
    took = format_seconds(outcome.seconds) if outcome.seconds else ""
    line = f"{outcome.section} {outcome.name:<14}{state:<12}{took:>6}  {outcome.reason}"
    return line.rstrip()


def main(argv: list[str] | None = None) -> int:
    """Run the check; 1 if a bar was missed or a section failed."""
    args = parse(argv)
    check_output(args.out, option="--out", folder=True)
    gpus = gpus_for(args.device)
    data = args.data or args.out / "work" / "data"
    there = (data / "train.json").exists()
    if args.data and not there:
        raise ConfigError(f"--data {data} holds no containers of train: `make beton OUT={data}`")
    if not there and 0 not in args.only:
        raise ConfigError("there is no set to train on yet, which section 0 draws: --only 0,...")
    args.out.mkdir(parents=True, exist_ok=True)
    adopt_orphans()  # what a section leaves behind is found below this process, and ended
    settings = CheckSettings(args.device, str(args.out.resolve()), str(data.resolve()))
    facts: dict[str, Any] = machine_facts()
    outcomes = check(args.only, settings, gpus=gpus)
    rows = [row for outcome in outcomes for row in outcome.rows]
    print(f"\n{bar_table(rows)}\n")
    for outcome in outcomes:
        print(summary(outcome))
        facts |= outcome.facts
    bars = [row for row in rows if row.verdict]
    met, good = sum(row.verdict != "MISSED" for row in bars), all(each.good for each in outcomes)
    told = {"settings": {"device": args.device, "only": args.only}}
    write_results(args.out / "gpu_check.json", rows, machine=facts, more=told)
    print(f"\n{met} of {len(bars)} bars met; {'passed' if good else 'FAILED'}; all: {args.out}")
    return 0 if good else 1


if __name__ == "__main__":
    run_main(main)
