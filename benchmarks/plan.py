"""`make bench-plan`: what `python -m harl_fast.plan` predicts, against what is measured here.

The loader's constants are fitted to some cells (store x size of the images x views) and predict
others, on one thread and on two. A step's time is to follow its FLOP. CPU seconds are compared,
which other programs disturb least, the least of all rounds of each cell; what threads gain is told
by the wall's clock.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from benchmarks.process import busy_s, machine_facts
from benchmarks.results import write_results
from harl_fast.errors import DataError
from harl_fast.files import Progress, check_output
from harl_fast.options import whole_number
from harl_fast.program import head, run_main


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, metavar="FOLDER", help="photos; default: made from sample photos")
    add("--count", type=whole_number(100, 10**6), default=192, metavar="N", help="pictures")
    add("--rounds", type=whole_number(1, 1000), default=5, metavar="N", help="default %(default)s")
    about = "to each step; default %(default)s"
    add("--visits", type=whole_number(1, 100), default=2, metavar="N", help=about)
    add("--out", type=Path, default=Path("runs/bench/plan.json"), metavar="FILE")
    return parser.parse_args(argv)


with head(__name__, parse):
    import numpy as np
    import numpy.typing as npt
    import scipy.optimize
    import torch
    from PIL import Image

    from benchmarks import inputs
    from harl_fast.config import DataConfig, RunConfig
    from harl_fast.data.loader import BetonLoader
    from harl_fast.data.views.color_device import Colouring
    from harl_fast.data.views.crop import ViewGeometry
    from harl_fast.model.backbones import build_backbone
    from harl_fast.plan.loader import shares
    from harl_fast.plan.measure import step_seconds, timed
    from harl_fast.plan.work import pretraining_work, supervised_work

BASE, BATCH, STEP_BATCH, LEAST_S = Path("data/bench"), 32, 8, 0.25
STORES = ("jpg", "yuv420", "raw")
LARGE, SMALL = 500, 250
"""Longer side of the stored images."""
WHOLE, MIDDLE, PART = (0.9, 1.0), (0.4, 0.6), (0.08, 0.3)
TERMS = ("image", "stored", "decoded", "view", "cut", "written")


class Cell(NamedTuple):
    """What a loader is asked for."""

    store: str
    side: int
    sizes: tuple[int, ...]
    scale: tuple[float, float] = (0.08, 1.0)
    threads: int = 1
    coloured: bool = False


FITTED = [
    Cell(store, side, sizes, scale)
    for store in STORES
    for side, sizes, scale in (
        *((LARGE, sizes, WHOLE) for sizes in ((224,), (96,))),
        *((LARGE, sizes, PART) for sizes in ((64,) * 4, (192,) * 4, (64,))),
        (LARGE, (128,), MIDDLE),
        *((SMALL, sizes, WHOLE) for sizes in ((224,), (64,))),
        (SMALL, (64,), PART),
        (SMALL, (160,), PART),
        (SMALL, (128,) * 3, MIDDLE),
    )
]
PREDICTED = [
    Cell(store, side, sizes, threads=threads)
    for store in STORES
    for side in (LARGE, SMALL)
    for sizes in ((224,), (224,) * 2, (224,) * 3, (160,) * 2)
    for threads in (1, 2)
]
COLOURED = [Cell("raw", LARGE, (px, px), coloured=True) for px in (160, 224)]


class Turn(NamedTuple):
    """One pass of a cell: seconds per image."""

    cpu_s: float
    wall_s: float


def container(root: Path, store: str, side: int, log: Path) -> Path:
    """Return the container of the input set's pictures in a store, at most ``side`` px long."""
    out = root / f"plan-{store}-{side}"
    if not (out / "complete").is_file():
        shutil.rmtree(out, ignore_errors=True)
        words = ["-m", "preprocess.beton", "--data", str(root / "source"), "--out", str(out)]
        words += ["--store", store, "--max-resolution", str(side), "--mask-method", "center"]
        with open(log, "a", encoding="utf-8") as stream:
            done = subprocess.run([sys.executable, *words], stdout=stream, stderr=stream)
        if done.returncode:
            raise DataError(f"the {store} container could not be written: see {log}")
        (out / "complete").touch()
    return out / "train.beton"


def geometries(cell: Cell) -> tuple[ViewGeometry, ...]:
    """Return a cell's views."""
    return tuple(ViewGeometry(size_px=px, cells=7, scale=cell.scale) for px in cell.sizes)


def measure(path: Path, cell: Cell, *, images: int) -> Turn:
    """Return what passes over the images take, after a short one."""
    colour = None
    if cell.coloured:
        data = DataConfig()
        both = zip(data.views, cell.sizes, strict=True)
        views = tuple(view.model_copy(update={"size_px": px}) for view, px in both)
        colour = Colouring(views, data.mean, data.std)
    loader = BetonLoader(
        path,
        views=geometries(cell),
        batch_global=BATCH,
        batch_micro=BATCH,
        workers=cell.threads,
        colour=colour,
    )
    with contextlib.closing(loader):
        for _ in loader.shown(range(BATCH)):
            pass
        cpu, wall, count, epoch = time.process_time(), time.perf_counter(), 0, 0
        while time.perf_counter() - wall < LEAST_S:
            count += sum(len(batch.ids) for batch in loader.shown(range(images), epoch=epoch))
            epoch += 1
        return Turn((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count)


def terms(cell: Cell, sizes: Counter[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Return what each of `TERMS` is multiplied by: the mean over images of these sizes."""
    total = np.zeros(len(TERMS))
    pixels = sum(px**2 for px in cell.sizes) / 1e6
    for (height, width), count in sizes.items():
        shrunk = min(1.0, cell.side / max(height, width))
        height, width = round(height * shrunk), round(width * shrunk)
        stored = height * width / 1e6
        covered = shares(geometries(cell), height=height, width=width)
        cut = stored * sum(covered.boxes)
        total += count * np.array(
            (1.0, stored, stored * covered.union, len(cell.sizes), cut, pixels)
        )
    return total / sizes.total()


def fitted(
    least_us: dict[Cell, float], sizes: Counter[tuple[int, int]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return each store's constants: none negative, of least squared relative errors.

    Of a JPEG, what its bytes cost is part of decoding; other stores are not decoded.
    """
    found = {}
    for store in STORES:
        cells = [cell for cell in FITTED if cell.store == store]
        rows = np.array([terms(cell, sizes) / least_us[cell] for cell in cells])
        rows[:, TERMS.index("stored" if store == "jpg" else "decoded")] = 0.0
        found[store], _ = scipy.optimize.nnls(rows, np.ones(len(cells)))
    return found


def loader_rows(
    turns: dict[Cell, list[Turn]], sizes: Counter[tuple[int, int]]
) -> tuple[list[report.Row], dict[str, dict[str, float]]]:
    """Return G6's lines of the loader, and the constants."""
    least = {cell: 1e6 * min(turn.cpu_s for turn in found) for cell, found in turns.items()}
    constants = fitted(least, sizes)
    rows = []
    for threads in (1, 2):
        errors = {
            cell: 100 * (float(terms(cell, sizes) @ constants[cell.store]) / least[cell] - 1)
            for cell in PREDICTED
            if cell.threads == threads
        }
        for cell, error in errors.items():
            print(f"{cell.store:<8}{cell.side} px, views {cell.sizes}, {threads} threads: "
                  f"{least[cell]:,.0f} us, predicted {error:+.1f} %")  # fmt: skip
        size = [abs(error) for error in errors.values()]
        what = f"loader cells, {threads} threads, error"
        rows.append(report.Row("G6", f"{what}, median", statistics.median(size), "%", 15, 10,
                               report.spread(size), less_is_better=True))  # fmt: skip
        inside = 100 * statistics.mean(one <= 15 for one in size)
        rows.append(report.Row("G6", "  cells within 15 %", inside, "%"))
    wall = {cell: min(turn.wall_s for turn in found) for cell, found in turns.items()}
    alone = [cell for cell in PREDICTED if cell.threads == 1]
    gains = [wall[cell] / wall[cell._replace(threads=2)] for cell in alone]
    gain = report.spread(gains)
    rows.append(report.Row("G6", "two threads over one, wall clock", gain.median, "x", spread=gain))
    plain = [Cell("raw", LARGE, cell.sizes) for cell in COLOURED]
    plain_us = [float(terms(cell, sizes) @ constants["raw"]) for cell in plain]
    extra = [least[cell] - us for cell, us in zip(COLOURED, plain_us, strict=True)]
    pixels = [sum(px**2 for px in cell.sizes) / 1e6 for cell in COLOURED]
    known = {name: dict(zip(TERMS, row.round(1).tolist(), strict=True))
             for name, row in constants.items()}  # fmt: skip
    known["colours"] = {"written": round(sum(extra) / sum(pixels), 1)}
    return rows, known


def supervised_seconds(config: RunConfig, size_px: int) -> float:
    """Return the CPU seconds per image of a plain supervised step."""
    backbone = build_backbone(config.model).to(memory_format=torch.channels_last)
    head = torch.nn.Linear(backbone.out_channels, 1000)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    images = torch.randn(STEP_BATCH, 3, size_px, size_px).to(memory_format=torch.channels_last)
    labels = torch.arange(STEP_BATCH)

    def once() -> int:
        loss = torch.nn.functional.cross_entropy(head(backbone(images).mean((2, 3))), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return STEP_BATCH

    return timed(once, budget_s=0.0, clock=time.process_time)[2]


def step_rows(*, visits: int) -> list[report.Row]:
    """Return G6's lines of the step: time ratios over FLOP ratios, of a ResNet-18 on one core.

    Small heads, so that the optimizer, which no size changes, takes little. The least time of each
    contender over some visits in turn.
    """
    torch.set_num_threads(1)
    heads = {"projector_hidden": 512, "projector_out": 128, "predictor_hidden": 512}
    config = RunConfig.model_validate({"model": {"arch": "resnet18", **heads}})
    sides, least = (224, 160, 128), dict.fromkeys(("supervised", "224", "160", "128"), math.inf)
    for _ in range(visits):
        for side in sides:
            span = step_seconds(
                config, (side, side), precision="fp32", micro=STEP_BATCH, budget_s=0.0,
                clock=time.process_time,
            )  # fmt: skip
            least[str(side)] = min(least[str(side)], span[2])
        least["supervised"] = min(least["supervised"], supervised_seconds(config, sides[0]))
    flops = {px: pretraining_work(config, (px, px), half=False).flops for px in sides}
    plain = supervised_work(config.model, 224, half=False).flops
    laws = [_law("HARL over supervised", least["224"] / least["supervised"], flops[224] / plain)]
    for px in sides[1:]:
        seen = least[str(px)] / least["224"]
        laws.append(_law(f"t({px}) / t(224)", seen, flops[px] / flops[224]))
    return laws


def _law(what: str, seen: float, law: float) -> report.Row:
    error = 100 * abs(law / seen - 1)
    name = f"{what}: {seen:.2f}, by FLOP {law:.2f}"
    return report.Row("G6", name, error, "%", 15, 10, less_is_better=True)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; 0 even when a bar is missed, for the table says so."""
    args = parse(argv)
    check_output(args.out, option="--out")
    log = args.out.parent / "logs" / "plan.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    root, machine = inputs.image_set(BASE, count=args.count, data=args.data), machine_facts()
    sizes = Counter(Image.open(file).size[::-1] for file in inputs.jpegs(root))
    turns: dict[Cell, list[Turn]] = {cell: [] for cell in (*FITTED, *PREDICTED, *COLOURED)}
    paths = {key: container(root, *key, log) for key in {(c.store, c.side) for c in turns}}
    began, busy, own = time.monotonic(), busy_s(), time.process_time()
    with Progress(args.rounds * len(turns), label="rounds", unit="turns") as progress:
        for _ in range(args.rounds):
            for cell, found in turns.items():
                found.append(measure(paths[cell.store, cell.side], cell, images=args.count))
                progress.advance()
    rows, constants = loader_rows(turns, sizes)
    rows += step_rows(visits=args.visits)
    others = (busy_s() - busy - (time.process_time() - own)) / (time.monotonic() - began)
    print("\n" + report.bar_table(rows))
    for name, values in constants.items():
        print(f"{name}: {values}")
    if others > report.QUIET_CORES:
        print(f"NOT A QUIET MACHINE: other programs used {others:.2f} cores")
    write_results(args.out, rows, machine=machine, more={
        "settings": {"rounds": args.rounds, "visits": args.visits, "count": args.count},
        "constants": constants,
        "others": others,
        "turns": [{**cell._asdict(), "turns": found} for cell, found in turns.items()],
    })  # fmt: skip
    print(f"all rounds: {args.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
