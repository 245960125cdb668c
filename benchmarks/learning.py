"""`make bench-learning`: what lightly's BYOL and ours learn at equal settings, and in what time.

lightly's loss, heads and moving average over torchvision's transforms and loader; the network, its
first weights, schedules, optimizer and batch are ours. lightly's loss is a mean of cosines and ours
a sum of squared distances, so that it is taken four times here: equal rates are equal steps then.
With --curve ours keeps the preset's own recipe, and k-NN is taken on the way.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.process import machine_facts
from harl_fast.errors import ConfigError, DataError, HarlError, one_line
from harl_fast.files import check_output, format_seconds, write_bytes
from harl_fast.host import usable_cores
from harl_fast.options import whole_number
from harl_fast.program import head, run_main
from harl_fast.results import write_result
from harl_fast.runfiles import discard_run
from harl_fast.steps import run
from harl_fast.textfile import read_json

EQUAL = (
    *("loss.type=byol", "loss.spread=0", "loss.contrast=0", "model.predictor_hidden=1024"),
    *("optim.name=sgd", "optim.lr=0.05", "optim.lr_scaling=none", "optim.weight_decay=0.0005"),
    *("optim.predictor_lr_scale=1", "target.tau_start=0.99", "target.tau_end=1.0"),
    "log.keep_last=1",
)
"""In a preset: nothing that lightly's BYOL lacks."""
QUIET = ("log.probe_epochs=0", "log.sheet_epochs=0")
POINTS = 5
"""Of a curve, besides its start; one more if they do not divide the epochs."""
_KNN = "k-NN"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="image folder with train/ and val/")
    add("--seeds", type=whole_number(2, 100), default=3, help="of each; default %(default)s")
    add("--config", default="small", metavar="NAME", help="preset of the network, %(default)s")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override in both's")
    add("--epochs", type=whole_number(1, 10**6), help="of each training (the preset's)")
    add("--curve", action="store_true", help="k-NN over images seen, ours by the preset's recipe")
    add("--out", type=Path, default=Path("runs/bench/learning"), help="default %(default)s")
    add("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


with head(__name__, parse):
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision import transforms as T

    from benchmarks.step import BATCH, LIGHTLY
    from harl_fast.config import RunConfig, ViewConfig, load_config
    from harl_fast.data.container.manifest import find_container, read_manifest
    from harl_fast.engine.networks import Pretrained, load_pretrained, untrained
    from harl_fast.engine.schedule import Schedule
    from harl_fast.eval.knn import knn_accuracy
    from harl_fast.optim.groups import param_groups
    from harl_fast.provenance import code_version
    from harl_fast.tools import charts
    from harl_fast.tools.evidence import CPU, pretraining, settle
    from harl_fast.tools.evidence_arms import STORED_PX
    from harl_fast.tools.evidence_scores import frozen_features, judge_photos
    from harl_fast.tools.paired import over_repeats


def main(argv: list[str] | None = None) -> int:
    """Train and judge what is not done yet, compare; return the exit code."""
    args = parse(argv)
    try:
        import lightly  # noqa: F401
    except ModuleNotFoundError as error:
        raise HarlError(f"lightly is not installed: {LIGHTLY}") from error
    if not (args.data / "train").is_dir():
        raise DataError(f"--data {args.data} has no train/: give a folder with train/ and val/")
    args.out, args.data = args.out.resolve(), args.data.resolve()
    check_output(args.out, option="--out", folder=True)
    precision = settle(args.out, photos=args.data).precision
    data = args.out / "data"
    if not (data / "val.json").exists():
        command = ("-m", "preprocess.beton", "--data", args.data, "--out", data)
        run(*command, "--mask-method", "full", "--max-resolution", str(STORED_PX))
    if args.one:
        train_and_judge(args, args.one[0], int(args.one[1]), data, precision)
        return 0
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "lightly": []}
    for seed in range(args.seeds):
        for name, each in found.items():
            path, provenance, _ = _trial(args, name, seed, data, precision)
            if _read(path).get("provenance") != json.loads(json.dumps(provenance)):
                # In a process of its own: the loader's threads are in the way of starting others.
                places = ("--data", args.data, "--out", args.out, "--one", name, str(seed))
                run("-m", "benchmarks.learning", *(argv or sys.argv[1:]), *places)
            each.append(_read(path))
    print("\n".join(one_line(line) for line in table(found)))
    if args.curve:
        write_bytes(args.out / "curve.png", draw(found))
        print(f"{args.out}/curve.png")
    return 0


def table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return lines with both contenders' means, and the differences paired by seed."""
    lines = []
    for name, each in found.items():
        said = [
            f"{what} {over_repeats([one['accuracy'][what] for one in each]).value:.1f}"
            for what in each[0]["accuracy"]
        ]
        spent = sum(one["seconds"] for one in each) / len(each)
        lines.append(f"{name}, {len(each)} seeds: {', '.join(said)}; {format_seconds(spent)} each")
    for what in found["ours"][0]["accuracy"]:
        ours, theirs = ([one["accuracy"][what] for one in each] for each in found.values())
        gap = over_repeats([a - b for a, b in zip(ours, theirs, strict=True)])
        lines.append(
            f"ours - lightly, {what}: {gap.value:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})"
        )
    curves = {name: mean_curve(each) for name, each in found.items()}
    for name, points in curves.items():
        said = ", ".join(f"{images:,} {value:.1f}" for images, value, _, _ in points)
        lines += [f"{name}, {_KNN} by images seen: {said}"] if said else []
    if curves["lightly"]:
        last, best = curves["lightly"][-1][:2]
        reached = [images for images, value, _, _ in curves["ours"] if value >= best]
        after = f"after {reached[0]:,}" if reached else f"not after {curves['ours'][-1][0]:,}"
        lines.append(f"lightly's {best:.1f} after {last:,} images: ours has it {after}")
    return lines


def mean_curve(each: Sequence[dict[str, Any]]) -> list[tuple[int, float, float, float]]:
    """Return images seen and k-NN over the seeds: mean, least, most; none without --curve."""
    points = list[tuple[int, float, float, float]]()
    for rows in zip(*(one.get("curve", ()) for one in each), strict=True):
        values = [value for _, value in rows]
        points.append((rows[0][0], sum(values) / len(values), min(values), max(values)))
    return points


def draw(found: dict[str, list[dict[str, Any]]]) -> bytes:
    """Return a PNG of both curves: means, and a band from the least seed to the most."""
    with charts.style():
        figure, (axes,) = charts.panels(6.0, 4.0)
        for (name, each), colour in zip(found.items(), (charts.BLUE, charts.ORANGE), strict=True):
            images, mean, low, high = zip(*mean_curve(each), strict=True)
            axes.plot(images, mean, "o-", color=colour, label=name)
            axes.fill_between(images, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel="images seen", ylabel=f"{_KNN}, top-1 in percent", ylim=(0, None))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(frameon=False)
        axes.set_title(f"{_KNN} by images seen, {len(each)} seeds")
        return charts.png(figure)


def _trial(
    args: argparse.Namespace, name: str, seed: int, data: Path, precision: str
) -> tuple[Path, dict[str, Any], list[str]]:
    """Return the file of a training's result, what decides that, and its overrides."""
    words = [*QUIET, *(EQUAL if name == "lightly" or not args.curve else ()), *args.set]
    words += [*([f"epochs={args.epochs}"] if args.epochs else []), f"seed={seed}"]
    config = load_config(args.config, overrides=words)
    provenance = {
        "contender": name,
        "config": config.model_dump(mode="json"),
        "trained_on": read_manifest(find_container(data, "train")).beton_sha256,
        "precision": precision,
        "curve": args.curve,
    }
    if args.curve:
        words += [f"log.checkpoint_epochs={_every(config)}", f"log.keep_last={POINTS + 1}"]
    return args.out / f"{name}-{seed}.json", provenance, words


def _every(config: RunConfig) -> int:
    """Return how many epochs lie between two points of a curve."""
    return -(-config.epochs // POINTS)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, error=DataError, most_bytes=1 << 20) if path.exists() else {}


def train_and_judge(
    args: argparse.Namespace, name: str, seed: int, data: Path, precision: str
) -> None:
    """Train a contender on the images, read accuracies out of its features, write both."""
    path, provenance, words = _trial(args, name, seed, data, precision)
    config = load_config(args.config, overrides=words)
    encoder = untrained(config, seed=seed)
    curve = [(0, knn(encoder, data))] if args.curve else []
    if name == "ours":
        folder, start = args.out / f"run-{seed}", time.monotonic()
        discard_run(folder, engine=CPU)
        run(*pretraining(args.config, words, data, folder, precision=precision))
        spent, encoder = time.monotonic() - start, load_pretrained(folder)
        kept = sorted((folder / "checkpoints").glob("step-*.safetensors")) if args.curve else []
        for step in kept:
            images = int(step.stem.removeprefix("step-")) * BATCH
            curve.append((images, knn(load_pretrained(step), data)))
    else:
        spent, start = 0.0, time.monotonic()
        trained = train_lightly(config, args.data / "train", half=precision == "bf16")
        for epoch, (images, backbone) in enumerate(trained, start=1):
            spent += time.monotonic() - start
            if epoch == config.epochs or (args.curve and epoch % _every(config) == 0):
                encoder = replace(encoder, backbone=copy.deepcopy(backbone).eval())
                if args.curve:
                    curve.append((images, knn(encoder, data)))
            start = time.monotonic()
    result = {"accuracy": judge_photos(encoder, data, {}, seed=seed), "seconds": spent}
    about = {"curve": curve, "machine": machine_facts(), "code": code_version()}
    write_result(path, result | about, provenance=provenance, name=f"{name}-{seed}")


def knn(encoder: Pretrained, data: Path) -> float:
    """Return an encoder's k-NN top-1 on the validation split in percent."""
    evaluator, train, val = frozen_features(encoder, data)
    return knn_accuracy(train, val, classes=evaluator.classes, device=train.features.device).top1


def train_lightly(
    config: RunConfig, images: Path, *, half: bool
) -> Iterator[tuple[int, nn.Module]]:
    """Yield images seen and the backbone after each epoch of lightly's BYOL on an image folder.

    half: in bf16 under autocast, as ours is.
    """
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import update_momentum

    torch.manual_seed(config.seed)
    model, backbone = config.model, untrained(config, seed=config.seed).backbone.train()
    projector = BYOLProjectionHead(
        backbone.out_channels, model.projector_hidden, model.projector_out
    )
    online = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), projector)
    target = copy.deepcopy(online).requires_grad_(False)
    predictor = BYOLPredictionHead(model.projector_out, model.predictor_hidden, model.projector_out)
    groups = param_groups(
        nn.ModuleList([online, predictor]), weight_decay=config.optim.weight_decay
    )
    plain = [{key: group[key] for key in ("params", "weight_decay")} for group in groups]
    optimizer = torch.optim.SGD(plain, lr=config.optim.lr, momentum=config.optim.momentum)
    criterion, loader = NegativeCosineSimilarity(), _loader(config, images)
    schedule = Schedule.of(config, steps_per_epoch=len(loader), batch_global=BATCH)
    passes = itertools.chain.from_iterable(itertools.repeat(loader, config.epochs))
    for step, (views, _) in enumerate(passes):
        first, second = (view.contiguous(memory_format=torch.channels_last) for view in views)
        now = schedule.at(step)
        for group in optimizer.param_groups:
            group["lr"] = now.lr
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            p0, p1 = predictor(online(first)), predictor(online(second))
            with torch.no_grad():
                z0, z1 = target(first), target(second)
        loss = 2 * criterion(z0.float(), p1.float()) + 2 * criterion(z1.float(), p0.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_momentum(online, target, m=now.tau)
        if (step + 1) % len(loader) == 0:
            epoch = (step + 1) // len(loader)
            print(f"epoch {epoch}/{config.epochs} loss {float(loss.detach()) + 4:.4f}", flush=True)
            yield (step + 1) * BATCH, backbone


def _loader(config: RunConfig, images: Path) -> DataLoader[Any]:
    chains = [transform(view, config) for view in config.data.views]
    folder = datasets.ImageFolder(str(images), lambda image: [chain(image) for chain in chains])
    return DataLoader(
        folder, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=usable_cores(),
        persistent_workers=True,
    )  # fmt: skip


def transform(view: ViewConfig, config: RunConfig) -> Any:
    """Return torchvision's transforms of a view. Raises ConfigError for what they lack."""
    if view.crop != "random" or view.background_p or view.augment or view.vflip_p:
        raise ConfigError("torchvision has no crops by masks, other backgrounds or added colours")
    strengths = (view.brightness, view.contrast, view.saturation, view.hue)
    low, high = (sigma * view.size_px / 224 for sigma in view.blur_sigma)
    blur = T.GaussianBlur(2 * math.ceil(3 * high) + 1, sigma=(low, high))
    return T.Compose(
        [
            T.RandomResizedCrop(view.size_px, scale=view.scale, ratio=view.ratio),
            T.RandomHorizontalFlip(view.flip_p),
            T.RandomApply([T.ColorJitter(*strengths)], p=view.jitter_p),
            T.RandomGrayscale(view.gray_p),
            T.RandomApply([blur], p=view.blur_p),
            T.RandomSolarize(128, p=view.solarize_p),
            T.ToTensor(),
            T.Normalize(config.data.mean, config.data.std),
        ]
    )


if __name__ == "__main__":
    run_main(main)
