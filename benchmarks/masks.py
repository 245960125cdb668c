"""`make bench-masks`: every mask method against true masks, peers and the clock."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.process import machine_facts
from benchmarks.results import write_results
from harl_fast.files import Progress, check_output
from harl_fast.options import SEED_MAX, whole_number
from harl_fast.program import head, run_main


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.masks", description=__doc__)
    add = parser.add_argument
    add("--horses", type=Path, metavar="FOLDER", help="images/ and masks/ of the same names")
    add("--photos", type=Path, metavar="FOLDER", help="photos in train/: empty and full shares")
    add("--stamps", type=Path, metavar="FOLDER", help="RGBA PNG cut-outs, pasted on --photos")
    add("--backdrops", type=Path, metavar="FOLDER", help="photos for --stamps instead")
    add("--network", type=Path, metavar="FILE", help="safetensors of `make masks-train`")
    add("--onnx", type=Path, metavar="FILE", help="a saliency network")
    add("--mask-method", action="append", default=[], metavar="SPEC", help="further methods")
    count, about = whole_number(1, 10**6), "default %(default)s"
    add("--composites", type=count, default=200, metavar="N", help=about)
    add("--count", type=count, default=300, metavar="N", help=f"of --photos; {about}")
    add("--rounds", type=count, default=5, metavar="N", help=f"of the clock; {about}")
    add("--seed", type=whole_number(0, SEED_MAX), default=0, metavar="N", help="of the composites")
    add("--storage", action="store_true", help="also: what stored mask sizes lose")
    add("--check", action="store_true", help="exit 1 if a floor is missed")
    add("--out", type=Path, default=Path("runs/bench/masks.json"), metavar="FILE")
    args = parser.parse_args(argv)
    for name in ("horses", "photos", "stamps", "backdrops", "network", "onnx"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            parser.error(f"argument --{name}: there is no {path}")
    return args


with head(__name__, parse):
    import cv2
    import numpy as np
    import torch

    from benchmarks import mask_report, mask_sets, mask_storage
    from benchmarks.mask_methods import Contender, contenders
    from benchmarks.mask_score import Score, score
    from benchmarks.mask_sets import HALVES, Case, half
    from preprocess.images.arrays import Mask, Pixels
    from preprocess.masks.registry import CHUNK

SPEED_PX, SPEED_COUNT, TURN_S = 300, 48, 0.5
"""Longest side and number of pictures for the clock; a turn goes on for this much CPU time."""


def load_sets(args: argparse.Namespace, skipped: dict[str, str]) -> dict[str, list[Case]]:
    """Return the pictures with true masks by set; fills in what is skipped and why."""
    sets = {}
    if args.horses:
        sets[mask_report.HORSES] = mask_sets.horses(args.horses)
    else:
        skipped[mask_report.HORSES] = "no HORSES=<folder with images/ and masks/> was given"
    sets["drawn composites"] = mask_sets.drawn(args.composites, seed=args.seed)
    backdrops = args.backdrops or args.photos
    if args.stamps and backdrops:
        photos = mask_sets.photo_files(backdrops, most=1000)
        cut = mask_sets.cut_outs(args.composites, args.stamps, photos, seed=args.seed)
        sets["cut-outs on photos"] = cut
    else:
        skipped["cut-outs on photos"] = "STAMPS=<folder> and PHOTOS=<folder> were not both given"
    if not args.photos:
        skipped["shares of empty and full masks"] = "no PHOTOS=<folder> was given"
    return sets


def score_all(
    contender: Contender, cases: Sequence[Case], progress: Progress
) -> tuple[list[Score], list[Mask]]:
    """Return a method's score and mask of each case."""
    scores, masks = [], []
    for chunk in _chunks(cases):
        found = contender.find([case.image for case in chunk])
        for case, (mask, soft, _) in zip(chunk, found, strict=True):
            scores.append(score(mask, soft, case.truth))
            masks.append(mask)
        progress.advance(len(chunk))
    return scores, masks


def mean_score(scores: Sequence[Score]) -> Score:
    """Return the mean of each figure over at least one score."""
    return Score(
        *(float(np.mean([getattr(s, f.name) for s in scores])) for f in dataclasses.fields(Score))
    )


def parts(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Return the means over all cases and over both halves of the fixed split."""
    chosen = {"all": list(scores)}
    for name in HALVES:
        chosen[name] = [each for place, each in enumerate(scores) if half(place) == name]
    return {name: dataclasses.asdict(mean_score(some)) for name, some in chosen.items() if some}


def shares(contender: Contender, files: Sequence[Path], progress: Progress) -> dict[str, float]:
    """Return how many of the photos get an empty, a full or a stand-in mask, as shares."""
    empty = full = stand_in = 0
    for chunk in _chunks(files):
        for mask, _, stood_in in contender.find(list(mask_sets.pictures(chunk))):
            empty, full, stand_in = empty + (not mask.any()), full + mask.all(), stand_in + stood_in
        progress.advance(len(chunk))
    counts = {"empty": int(empty), "full": int(full), "stand_in": int(stand_in)}
    return {name: count / len(files) for name, count in counts.items()}


def speeds(
    some: Sequence[Contender], images: Sequence[Pixels], *, rounds: int
) -> dict[str, list[float]]:
    """Return images per second of CPU time, one figure per round, in turns A B C A B C.

    CPU time of all threads: other programs and extra threads do not flatter a method.
    """
    feeds = {c.name: itertools.cycle(list(_chunks(images))) for c in some}
    for contender in some:  # compiled, loaded and allocated before the clock starts
        contender.find(next(feeds[contender.name]))
    rates: dict[str, list[float]] = {contender.name: [] for contender in some}
    with Progress(rounds * len(some), label="speed", unit="turns") as progress:
        for _, contender in itertools.product(range(rounds), some):
            begun, done = time.process_time(), 0
            while (passed := time.process_time() - begun) < TURN_S:
                chunk = next(feeds[contender.name])
                contender.find(chunk)
                done += len(chunk)
            rates[contender.name].append(done / passed)
            progress.advance()
    return rates


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def measure(
    args: argparse.Namespace, some: Sequence[Contender], sets: Mapping[str, Sequence[Case]]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Mask]]]:
    """Return each method's scores, shares and speeds, and its masks of the horses."""
    photos = mask_sets.photo_files(args.photos, most=args.count) if args.photos else []
    results: dict[str, dict[str, Any]] = {}
    kept: dict[str, list[Mask]] = {}
    each = sum(len(cases) for cases in sets.values()) + len(photos)
    for contender in some:
        scores, singles = {}, {}
        with Progress(each, label=contender.name) as progress:
            for name, cases in sets.items():
                found, masks = score_all(contender, cases, progress)
                scores[name] = parts(found)
                singles[name] = [round(one.iou, 4) for one in found]
                if name == mask_report.HORSES:
                    kept[contender.name] = masks
            bad = {"shares": shares(contender, photos, progress)} if photos else {}
        results[contender.name] = {"facts": contender.facts, "scores": scores, "iou": singles} | bad
    if photos:
        clocked = list(mask_sets.pictures(photos[:SPEED_COUNT], longest_px=SPEED_PX))
    else:
        clocked = [case.image for case in mask_sets.drawn(SPEED_COUNT)]
    for name, rates in speeds(some, clocked, rounds=args.rounds).items():
        results[name]["speed"] = rates
    return results, kept


def stored(
    sets: Mapping[str, Sequence[Case]], kept: Mapping[str, Sequence[Mask]]
) -> dict[str, Any]:
    """Return what storing loses of the true masks, and of those of methods that see the image."""
    found = mask_storage.measure({f"true, {name}": cases for name, cases in sets.items()})
    for method in ("heuristic", "selftrained", "onnx"):
        if method in kept:
            name = f"{method}, {mask_report.HORSES}"
            cases = {name: sets[mask_report.HORSES]}
            found |= mask_storage.measure(cases, found={name: kept[method]})
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; with ``--check`` 1 if a floor is missed, else 0."""
    args = parse(argv)
    check_output(args.out, option="--out")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    facts = machine_facts()
    some, skipped = contenders(network=args.network, onnx=args.onnx, extra=args.mask_method)
    sets = load_sets(args, skipped)
    results, kept = measure(args, some, sets)
    print(f"\n{facts['cpu']}, one core, CPU time; {args.rounds} rounds\n")
    columns = {name: [p for p in ("all", *HALVES) if len(sets[name]) > 1 or p == "all"]
               for name in sets}  # fmt: skip
    print(mask_report.score_table(results, columns) + "\n")
    print(mask_report.cost_table(results) + "\n")
    storage = stored(sets, kept) if args.storage else None
    if storage:
        print(mask_storage.table(storage) + "\n")
    rows = mask_report.check_rows(results)
    print(mask_report.verdicts(rows))
    for name, why in skipped.items():
        print(f"skipped: {name}: {why}")
    write_results(args.out, rows, machine=facts, more={
        "settings": {key: str(value) for key, value in vars(args).items()},
        "sets": {name: len(cases) for name, cases in sets.items()},
        "skipped": skipped,
        "methods": results,
        "storage": storage,
    })  # fmt: skip
    print(f"all figures: {args.out}")
    return 1 if args.check and mask_report.missed(rows) else 0


if __name__ == "__main__":
    run_main(main)
