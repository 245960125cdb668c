"""`make bench-eval`: what judging features costs, in turns with scikit-learn and plain PyTorch."""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.process import busy_s, machine_facts, memory_bytes
from benchmarks.results import bars_among, conclude
from harl_fast.errors import DataError
from harl_fast.files import Progress, check_output
from harl_fast.host import usable_cores
from harl_fast.options import whole_number
from harl_fast.program import head, run_main

NAMES = tuple(f"V{number}" for number in range(1, 9))
"""Of `BARS`, and of the bars of steps."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/caltech101"), metavar="FOLDER",
        help="containers of Caltech-101 (%(default)s)")  # fmt: skip
    add("--rounds", type=whole_number(1, 10**4), default=3, metavar="N", help="default %(default)s")
    about = f"bars to measure; default {','.join(NAMES)}"
    add("--only", dest="bars", type=bars_among(NAMES), default=NAMES, metavar="V1,V5", help=about)
    add("--threads", type=whole_number(1, 1024), default=usable_cores(), help="default: all cores")
    add("--out", type=Path, default=Path("runs/bench/evaluate.json"), metavar="FILE")
    return parser.parse_args(argv)


with head(__name__, parse):
    import torch
    from threadpoolctl import threadpool_limits
    from torch import Tensor, nn
    from torch.nn import functional

    from benchmarks import finetune_step
    from harl_fast.config import RGB_MEAN, RGB_STD, ModelConfig
    from harl_fast.data.loader import EvalLoader
    from harl_fast.data.views.color_device import Photometric
    from harl_fast.eval import linear
    from harl_fast.eval.cache import FeatureCache
    from harl_fast.eval.features import FeatureSet, extract
    from harl_fast.eval.knn import knn
    from harl_fast.eval.logistic import SWEEP_TOLERANCE
    from harl_fast.eval.logreg import CS, optima
    from harl_fast.eval.options import NEIGHBOURS
    from harl_fast.model.backbones import build_backbone
    from harl_fast.model.pooling import global_mean

SIZE_PX, BATCH, EPOCHS = 96, 256, 3
BANK, QUERIES = 100_000, 1000
MOST_MB = 300.0
Timed = Callable[[], object]


class Inputs:
    """A ResNet-18 with fresh weights, the training images of a container, and their features."""

    def __init__(self, folder: Path) -> None:
        container = folder / "train.beton"
        if not container.exists():
            raise DataError(
                f"--data {folder} has no train.beton: `make beton DATA=<Caltech-101> OUT={folder}`"
            )
        torch.manual_seed(0)
        self.encoder = build_backbone(ModelConfig(arch="resnet18")).eval()
        self.loader = EvalLoader(container, size_px=SIZE_PX, batch=BATCH)
        self.prepare = Photometric((), mean=RGB_MEAN, std=RGB_STD, seed=0).plain
        self._calibrate()
        self.classes = len(self.loader.manifest.classes)
        self.data = self.extract()
        shift = linear.standardiser(self.data.features)
        self.rows = FeatureSet(shift(self.data.features), self.data.labels)

    def _calibrate(self) -> None:
        """Give BatchNorm statistics of the images: features of fresh weights vanish without."""
        first = next(iter(self.loader))
        with torch.no_grad():
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = None
            self.encoder.train()(self.prepare(first.views[0]))
        self.encoder.eval()

    def extract(self) -> FeatureSet:
        """Return the features of all images."""
        return extract(
            self.encoder,
            self.loader,
            prepare=self.prepare,
            device=torch.device("cpu"),
            stream=io.StringIO(),
        )

    def batches(self) -> list[Tensor]:
        """Return all normalised images in memory."""
        return [self.prepare(batch.views[0]).clone() for batch in self.loader]


def logreg(inputs: Inputs) -> tuple[Timed, Timed]:
    """V1: 45 optima, and scikit-learn's defaults with a warm start, C ascending."""
    from sklearn.linear_model import LogisticRegression

    rows, labels = inputs.rows.features, inputs.rows.labels

    def theirs() -> None:
        model = LogisticRegression(warm_start=True)
        for c in CS:
            model.set_params(C=c).fit(rows.numpy(), labels.numpy())

    def ours() -> None:
        list(optima(rows, labels, classes=inputs.classes, tolerance=SWEEP_TOLERANCE))

    return ours, theirs


def grid(inputs: Inputs) -> tuple[Timed, Timed]:
    """V2: 24 heads at once, and a plain loop for one after another."""
    pairs = [(lr, decay) for lr in linear.LRS for decay in linear.WEIGHT_DECAYS]
    every = torch.arange(len(inputs.rows.labels))
    recipe = linear._Recipe(inputs.classes, EPOCHS, BATCH, 0, torch.device("cpu"))

    def ours() -> None:
        with Progress(1, label="", stream=io.StringIO()) as progress:
            linear._train(inputs.rows, every, grid=pairs, recipe=recipe, progress=progress)

    def theirs() -> None:
        for lr, decay in pairs:
            _plain_head(inputs, lr=lr, decay=decay)

    return ours, theirs


def _plain_head(inputs: Inputs, *, lr: float, decay: float) -> None:
    rows, labels = inputs.rows.features, inputs.rows.labels
    head = nn.Linear(rows.shape[1], inputs.classes)
    optimizer = torch.optim.SGD(
        head.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=decay
    )
    steps = EPOCHS * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(rows)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(head(rows[index]), labels[index]).backward()
            optimizer.step()
            schedule.step()


def extraction(inputs: Inputs) -> tuple[Timed, Timed]:
    """V3: images from the container to features, and the forward pass of images in memory."""
    images = inputs.batches()

    def theirs() -> None:
        with torch.inference_mode():
            for batch in images:
                global_mean(inputs.encoder(batch))

    return inputs.extract, theirs


def cached(inputs: Inputs) -> tuple[Timed, Timed]:
    """V4: kept features, and their extraction."""
    cache = FeatureCache(Path(tempfile.mkdtemp(prefix="harl_fast-bench-")))
    cache.get({}, lambda: inputs.data, name="train")
    return lambda: cache.get({}, inputs.extract, name="train"), inputs.extract


def neighbours(inputs: Inputs) -> tuple[Timed, Timed]:
    """V5: five k, and one search of scikit-learn's for the largest."""
    from sklearn.neighbors import KNeighborsClassifier

    generator = torch.Generator().manual_seed(0)
    bank, queries = (
        FeatureSet(
            torch.randn(count, 512, generator=generator),
            torch.randint(100, (count,), generator=generator),
        )
        for count in (BANK, QUERIES)
    )

    def theirs() -> None:
        model = KNeighborsClassifier(metric="cosine", algorithm="brute")
        model.fit(bank.features.numpy(), bank.labels.numpy())
        model.kneighbors(queries.features.numpy(), max(NEIGHBOURS))

    return lambda: knn(bank, queries, classes=100), theirs


BARS: dict[str, tuple[Callable[[Inputs], tuple[Timed, Timed]], str, float, float, bool]] = {
    "V1": (logreg, "logreg, 45 C, over scikit-learn", 5.0, 15.0, False),
    "V2": (grid, "24 SGD settings over a plain loop", 1.5, 3.0, False),
    "V3": (extraction, "extraction's time over the forward pass", 1.15, 1.08, True),
    "V4": (cached, "kept features' time over extraction", 0.05, 0.01, True),
    "V5": (neighbours, "k-NN, five k, over scikit-learn", 2.0, 5.0, False),
}
"""Of each bar: what makes both sides, what it says, floor, goal, and whether less is better."""


def turns(ours: Timed, theirs: Timed, *, rounds: int) -> Iterator[dict[str, float]]:
    """Yield the seconds of both sides, and the cores that others kept busy, round by round."""
    for _ in range(rounds):
        found: dict[str, float] = {"others": 0.0}
        for name, side in (("ours", ours), ("theirs", theirs)):
            busy, own, begun = busy_s(), sum(os.times()[:4]), time.perf_counter()
            side()
            found[name] = time.perf_counter() - begun
            other = (busy_s() - busy) - (sum(os.times()[:4]) - own)
            found["others"] = max(found["others"], other / found[name])
        yield found


def memory_mb(side: Timed) -> float:
    """Return how much memory a side takes at most beside what is there before, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = memory_bytes()
    side()
    now = memory_bytes()
    return (now["VmHWM"] - sum(before[n] for n in ("RssAnon", "RssFile", "RssShmem"))) / report.MB


def judging(
    args: argparse.Namespace, bars: Sequence[str]
) -> tuple[dict[str, Any], list[report.Row]]:
    """Return all rounds of some of `BARS`, and their lines."""
    torch.set_num_threads(args.threads)
    inputs = Inputs(args.data)
    rounds: dict[str, Any] = {}
    rows = []
    for bar in bars:
        make, what, floor, goal, less = BARS[bar]
        ours, theirs = make(inputs)
        print(f"{bar}: {what}", flush=True)
        with threadpool_limits(args.threads):  # scikit-learn's BLAS, which `make` has loaded
            if bar != "V5":
                ours()  # warm-up
            else:
                taken = memory_mb(ours)  # of the first time: the heap keeps what it once had
                about = ("V5", "  its memory", taken, "MB", MOST_MB)
                rows.append(report.Row(*about, less_is_better=True))
            rounds[bar] = list(turns(ours, theirs, rounds=args.rounds))
        pairs = [(each["ours"], each["theirs"]) for each in rounds[bar]]
        found = report.spread([a / b if less else b / a for a, b in pairs])
        rows.append(
            report.Row(bar, what, found.median, "x", floor, goal, found, less_is_better=less)
        )
        medians = [statistics.median(each) for each in zip(*pairs, strict=True)]
        print(f"  {medians[0]:.3f} s, the other side {medians[1]:.3f} s", flush=True)
    count, dim = inputs.data.features.shape
    print(f"\n{count:,} images of {inputs.classes} classes, {dim} features")
    return rounds, rows


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; 0 even when a bar is missed, for the table says so."""
    args = parse(argv)
    check_output(args.out, option="--out")
    facts = machine_facts()
    rounds: dict[str, Any] = {}
    rows = []
    if own := [bar for bar in args.bars if bar in BARS]:
        rounds, rows = judging(args, own)
    if others := [bar for bar in args.bars if bar not in BARS]:
        logs = args.out.parent / "logs"
        steps = finetune_step.measured(others, threads=args.threads, rounds=args.rounds, logs=logs)
        rounds, rows = {**rounds, **steps[0]}, [*rows, *steps[1]]
    print(
        f"\n{facts['cpu']}, {args.threads} threads; ResNet-18 at {SIZE_PX} px; {args.rounds} "
        f"rounds\n"
    )
    more = {"settings": vars(args) | {"data": str(args.data), "out": str(args.out)}}
    conclude(args.out, rows, rounds, machine=facts, more=more)
    return 0


if __name__ == "__main__":
    run_main(main)
