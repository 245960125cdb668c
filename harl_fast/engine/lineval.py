"""A checkpoint's features judged on a folder of containers, from paths to result files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from harl_fast.data.container.manifest import (
    check_labelled,
    containers_in,
    find_container,
    read_manifest,
)
from harl_fast.data.loader import decoding_threads
from harl_fast.engine.machine import Machine, leader_reports, this_machine
from harl_fast.engine.meeting import check_alike, meet
from harl_fast.engine.networks import Pretrained, load_pretrained, random_like
from harl_fast.errors import HarlError, OutputError, one_line
from harl_fast.eval.cache import FeatureCache
from harl_fast.eval.metrics import scores
from harl_fast.eval.options import BATCH, EPOCHS, NEIGHBOURS, TEMPERATURE
from harl_fast.eval.protocol import Evaluation, Evaluator, table
from harl_fast.eval.ranks import ALONE, Ranks
from harl_fast.eval.results import Result, result_folder
from harl_fast.eval.results import write_result as write_folder
from harl_fast.eval.subsets import write_subset
from harl_fast.files import check_output
from harl_fast.lock import lock_beside, locked
from harl_fast.provenance import code_version
from harl_fast.results import write_result
from harl_fast.runfiles import RunFolder, check_apart, home
from harl_fast.supervision import leave, supervisors, watching
from harl_fast.textfile import tree_sha256

_PATIENCE_MINUTES, _MEETING_MINUTES = 24 * 60.0, 10.0
"""How long ranks wait for rank 0, which trains the heads alone, and for each other to come."""


def lineval(
    *,
    ckpt: Path,
    data: Path,
    random: bool = False,
    size_px: int | None = None,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    workers: int = 0,
    seed: int = 0,
    out: Path | None = None,
    protocol: str = "cached",
    knn: Sequence[int] | None = None,
    knn_temperature: float = TEMPERATURE,
    subset: str | None = None,
    subset_seed: int = 0,
    cache: bool = True,
    crop: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    draw: Callable[[Path], object] = lambda folder: None,
) -> int:
    """Judge the checkpoint's encoder, and a random one if asked; rank 0 prints and writes.

    See launch/lineval.py for the arguments; draw is given the folder of the checkpoint's result.
    Ranks share features and k-NN's bank, rank 0 has the heads. Raises HarlError.
    """
    run = home(ckpt)
    out = out or (ckpt if ckpt.is_dir() else ckpt.parent) / "lineval.json"
    watched, machine = supervisors(), this_machine()  # in this order
    with leader_reports(machine), watching(watched, lost=leave), contextlib.ExitStack() as held:
        _check_places(out, run, ckpt=ckpt, data=data)
        _take(held, machine, (out, RunFolder(run).evaluations))
        loaded = load_pretrained(ckpt, mean=mean, std=std, size_px=size_px)
        encoders = {"pretrained": loaded}
        encoders |= {"random": random_like(loaded, seed=seed)} if random else {}
        seen = preprocessing(loaded, crop=crop)
        if machine.rank == 0:
            print(one_line("preprocessing: " + ", ".join(f"{k} {v}" for k, v in seen.items())))
        evaluator = Evaluator(
            data,
            **{name: seen[name] for name in ("size_px", "mean", "std", "crop")},
            device=machine.device,
            batch=batch,
            workers=decoding_threads(workers, ranks_here=machine.ranks_here),
            subset=subset,
            subset_seed=subset_seed,
            cache=FeatureCache(run / "features") if cache else None,
            ranks=held.enter_context(_met(machine)),
        )
        ks = knn or [k for k in NEIGHBOURS if k <= evaluator.train_count] or [evaluator.train_count]
        asked = {"epochs": epochs, "seed": seed, "protocol": protocol}
        asked |= {"ks": ks, "temperature": knn_temperature}
        settings = {**asked, "random": random, "subset": subset, "subset_seed": subset_seed, **seen}
        _check(evaluator, loaded, settings)
        judged = {name: _judged(evaluator, each, name, asked) for name, each in encoders.items()}
        found = {name: result for name, result in judged.items() if result is not None}
        if machine.rank == 0:
            draw(_write_all(out, run, evaluator, encoders, found, seen, settings))
    return 0


def _write_all(
    out: Path,
    run: Path,
    evaluator: Evaluator,
    encoders: Mapping[str, Pretrained],
    found: Mapping[str, Evaluation],
    seen: dict[str, Any],
    settings: Mapping[str, Any],
) -> Path:
    """Write the results of all encoders, and print them; return the first one's folder."""
    _write_summary(out, evaluator, encoders["pretrained"], found, settings)
    folders = [
        _write(run, evaluator, encoders[name], result, name, seen, settings)
        for name, result in found.items()
    ]
    # A full disk of the log takes nothing of the result.
    among = {"classes": evaluator.classes, "seed": settings["seed"]}
    print(table(found, chance=evaluator.chance(), **among))
    print("\n".join(one_line(f"result: {place}") for place in (out, *folders)))
    return folders[0]


def _take(held: contextlib.ExitStack, machine: Machine, outputs: Sequence[Path]) -> None:
    """Hold the locks of rank 0's outputs until ``held`` is closed; do nothing on other ranks.

    Raises HarlError if another process holds one, and the other ranks hear of it as they meet.
    """
    try:
        for output in outputs if machine.rank == 0 else ():
            held.enter_context(locked(lock_beside(output), output=output))
    except HarlError as refusal:
        if machine.ranks > 1:
            _meet(machine, refusal=refusal)
        raise


def _meet(machine: Machine, *, refusal: HarlError | None = None) -> None:
    patience, coming = _PATIENCE_MINUTES, _MEETING_MINUTES
    meet(machine, timeout_minutes=patience, meeting_minutes=coming, refusal=refusal)


@contextlib.contextmanager
def _met(machine: Machine) -> Iterator[Ranks]:
    """Join this rank to the others, if there are any, until they have all finished."""
    if machine.ranks == 1:
        yield ALONE
        return
    from harl_fast import collectives
    from harl_fast.engine import deepspeed as ds

    _meet(machine)
    yield Ranks(machine.rank, machine.ranks, collectives.host_group())
    ds.stop()


def _check(evaluator: Evaluator, loaded: Pretrained, settings: Mapping[str, Any]) -> None:
    """Raise HarlError, on all ranks, for what cannot be judged or would not be the same there."""
    evaluator.check(settings["ks"])
    if evaluator.ranks.count > 1:
        weights, options = loaded.weights_sha256, tree_sha256(dict(settings))
        check_alike({"networks": weights, "options": options, **evaluator.digests()})


def _check_places(out: Path, run: Path, *, ckpt: Path, data: Path) -> None:
    train = find_container(data, "train")
    check_labelled(train, read_manifest(train))
    containers = [each for split in ("train", "val") for each in containers_in(data, split)]
    results = RunFolder(run).evaluations
    check_output(out, option="--out", inputs=[ckpt, *containers], suffix=".json")
    check_output(results, option="--ckpt", folder=True)
    check_apart(out, option="--out")
    if results.resolve() in out.resolve().parents:
        raise OutputError(f"--out {out} lies in {results}, of results alone: choose another folder")


def _judged(
    evaluator: Evaluator, encoder: Pretrained, name: str, settings: Mapping[str, Any]
) -> Evaluation | None:
    weights = encoder.weights_sha256
    return evaluator(
        encoder.backbone, label=name, autocast=half(), weights_sha256=weights, **settings
    )


def half() -> torch.dtype | None:
    """Return what encoders compute in; None is their own type."""
    return torch.bfloat16 if torch.cuda.is_available() else None


def checkpoint_record(pretrained: Pretrained, run: Path) -> dict[str, Any]:
    """Return what a result says of its checkpoint, see `results.Result`."""
    return {
        "path": str(pretrained.source.resolve()),
        "run": str(run.resolve()),
        "step": _facts(pretrained).get("step"),
        "weights_sha256": pretrained.weights_sha256,
        "receipt": str(pretrained.receipt),
    }


def preprocessing(pretrained: Pretrained, *, crop: float | None) -> dict[str, Any]:
    """Return what a result says of how images become inputs, see `results.Result`.

    crop: share of the shorter side; None: the checkpoint's.
    """
    return {
        "size_px": pretrained.size_px,
        "crop": crop or pretrained.crop,
        "mean": list(pretrained.mean),
        "std": list(pretrained.std),
        "precision": str(half() or torch.float32).removeprefix("torch."),
    }


def _write_summary(
    out: Path,
    evaluator: Evaluator,
    pretrained: Pretrained,
    found: Mapping[str, Evaluation],
    settings: Mapping[str, Any],
) -> None:
    """Write ``lineval.json``."""
    provenance = {
        "checkpoint": _facts(pretrained),
        "data": evaluator.data_facts(),
        "settings": {**settings, "autocast": str(half()), **evaluator.settings()},
        "code": code_version(),
        "torch": torch.__version__,
    }
    records = {name: each.record() for name, each in found.items()}
    name = f"{evaluator.data_record()['name']}-{pretrained.source.stem}"
    write_result(out, records, provenance=provenance, name=name)


def _write(
    run: Path,
    evaluator: Evaluator,
    encoder: Pretrained,
    found: Evaluation,
    name: str,
    seen: dict[str, Any],
    settings: Mapping[str, Any],
) -> Path:
    """Write the result of one encoder into its folder and return that."""
    data, linear, seed = evaluator.data_record(), found.linear, settings["seed"]
    among = {"classes": evaluator.classes, "seed": seed}
    protocol = settings["protocol"]
    # Not the batch of the encoder: features may be kept ones, and it changes their rounding alone.
    length = {"epochs": settings["epochs"]} if protocol == "cached" else {}
    baseline = "" if name == "pretrained" else f"-{name}"
    folder = result_folder(run, data=data["name"], protocol=f"{protocol}{baseline}")
    result = Result(
        protocol=protocol,
        headline=evaluator.headline(),
        data=data,
        checkpoint=checkpoint_record(encoder, run),
        preprocessing=seen,
        settings={**length, "knn_temperature": settings["temperature"]},
        metrics=scores(linear.predictions, **among),
        knn={str(k): scores(each, **among) for k, each in found.neighbours.items()},
        choice=linear.choice(),
        trials=linear.trial_records(),
        predictions=linear.predictions,
        ids=torch.arange(len(linear.predictions.labels)),
        names=evaluator.names("val"),
        head=linear.head,
        seed=seed,
    )
    write_folder(folder, result)
    if evaluator.subset is not None:
        write_subset(folder / "subset.txt", evaluator.names("train"), evaluator.subset)
    return folder


def _facts(pretrained: Pretrained) -> dict[str, Any]:
    """Return what a checkpoint's record says of it; of other files, which they are."""
    file = {"file": str(pretrained.source.resolve())}
    if pretrained.record is None:
        return {**file, "weights_sha256": pretrained.weights_sha256}
    left_out = {"config", "engine", "loader", "ranks"}
    known = pretrained.record.model_dump(mode="json", exclude=left_out)
    return {**file, **known}
