"""A trained classifier on a container, over all ranks: its predictions, and the right answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harl_fast import collectives
from harl_fast.data.container.manifest import read_manifest
from harl_fast.data.container.names import read_names
from harl_fast.data.loader import EvalLoader
from harl_fast.data.order import Ids
from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.monitor.probe import averaged_statistics
from harl_fast.engine.networks import encoder_of
from harl_fast.engine.precision import AUTOCAST
from harl_fast.engine.supervised import TuneState
from harl_fast.errors import CheckpointError, DataError
from harl_fast.eval.metrics import NO_CLASS, Predictions, predictions, scores
from harl_fast.eval.protocol import headline, split_kind
from harl_fast.eval.results import Head, Result, result_folder, write_result
from harl_fast.files import Progress, to_stderr
from harl_fast.model.classifier import LINEAR
from harl_fast.model.weightfile import digest

_ROW = 9
"""Numbers per image that ranks exchange: id, label, prediction, five best, probability."""


class JudgingStopped(Exception):
    """Raised on all ranks if one of them was asked to stop meanwhile."""


def right_answers(
    state: TuneState, container: Path, ids: Ids, *, stopping: Callable[[], bool]
) -> list[float]:
    """Return the share of right answers of each head on some samples; all ranks must call it.

    Raises JudgingStopped.
    """
    right = torch.zeros(len(state.config.head_lr_grid), dtype=torch.float64)
    own = np.asarray(ids)[state.machine.rank :: state.machine.ranks]
    for logits, labels, _ in _passes(state, container, own, stopping, label="held-out images"):
        right += (logits.argmax(2) == labels[:, None]).double().sum(0)
    _stop_together(stopping)
    by_rank = torch.tensor(collectives.gather_floats(right.tolist()))
    found: list[float] = (by_rank.sum(0) / max(1, len(ids))).tolist()
    return found


def choose_head(
    state: TuneState, shares: Sequence[float], *, count: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the head with the most right answers on held-out images, and all trials.

    Of equal ones the lowest rate's.
    """
    config = state.config
    rates = [config.head_lr_mult * factor for factor in config.head_lr_grid]
    trials = [
        {"head": g, "lr": rate * config.learning_rate, "held_out_top1": 100.0 * share}
        for g, (rate, share) in enumerate(zip(rates, shares, strict=True))
    ]
    best = max(trials, key=lambda trial: (trial["held_out_top1"], -trial["lr"]))
    edge = best["lr"] in (trials[0]["lr"], trials[-1]["lr"]) and len(trials) > 1
    where = f"{count:,} held-out training images"
    return {**best, "chosen_on": where, "at_edge": edge}, trials


def judge(
    state: TuneState, container: Path, *, head: int, stopping: Callable[[], bool]
) -> tuple[Predictions, Tensor]:
    """Return what one head predicts of all samples of a container, and their ids, in order.

    All ranks must call it; the answer is the same on all. Raises JudgingStopped, and
    CheckpointError if scores are not finite.
    """
    rank, ranks = state.machine.rank, state.machine.ranks
    with contextlib.closing(_loader(state, container, None)) as whole:
        count = len(whole)
    own = np.arange(count)[rank::ranks]
    rows = torch.full((-(-count // ranks), _ROW), -1.0, dtype=torch.float64)
    done = 0
    for logits, labels, ids in _passes(state, container, own, stopping, label="val images"):
        found = predictions(logits[:, head], labels)
        columns = (ids, found.labels, found.predicted, *found.top5.unbind(1), found.probability)
        rows[done : done + len(ids)] = torch.stack([column.double() for column in columns], 1)
        done += len(ids)
    _stop_together(stopping)
    every = collectives.gather_rows(rows.flatten()) if ranks > 1 else rows.flatten()[None]
    table = every.reshape(-1, _ROW)
    table = table[table[:, 0] >= 0]
    table = table[table[:, 0].argsort()]
    whole_numbers = table[:, :-1].long()
    bad = int((whole_numbers[:, 2] == NO_CLASS).sum())
    if bad:
        raise CheckpointError(
            f"{container}: {bad:,} of {count:,} images have scores that are not finite: the "
            f"training diverged. Start it again with {state.gentler}"
        )
    found = Predictions(
        labels=whole_numbers[:, 1],
        predicted=whole_numbers[:, 2],
        top5=whole_numbers[:, 3:8],
        probability=table[:, -1].float(),
    )
    return found, whole_numbers[:, 0]


def _check_same(state: TuneState, container: Path) -> None:
    """Raise DataError unless a container is one of those that the run began with."""
    known = (state.facts["beton_sha256"], state.facts["val_sha256"])
    if read_manifest(container).beton_sha256 not in known:
        raise DataError(
            f"{container} was replaced while the network trained, and does not judge it: the run "
            f"is saved. Put the container back, or train anew, then judge by --resume --mode eval"
        )


def _names(state: TuneState, container: Path) -> list[str]:
    names = read_names(container)
    _check_same(state, container)
    return names


def _loader(state: TuneState, container: Path, ids: Ids | None) -> EvalLoader:
    _check_same(state, container)
    config = state.config
    assert config.image_size is not None and config.model is not None
    assert config.data.centre is not None
    return EvalLoader(
        container,
        size_px=config.image_size,
        batch=state.engine_config.batches.batch_micro,
        workers=config.data.workers,
        centre=config.data.centre,
        damaged=config.data.damaged,
        check=config.data.check,
        ids=ids,
        channels=config.model.in_channels,
        skip_broken=config.data.skip_broken,
    )


def _passes(
    state: TuneState, container: Path, ids: Ids, stopping: Callable[[], bool], *, label: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (B, G, K) logits, (B,) labels and ids on the CPU; the networks stay as they were.

    Ends early where this rank was asked to stop.
    """
    classifier, prepare = state.classifier, state.prepare.plain
    dtype = AUTOCAST.get(state.engine_config.precision)
    training = classifier.training
    classifier.eval()
    try:
        with averaged_statistics(classifier), torch.inference_mode(), contextlib.ExitStack() as on:
            if len(ids) == 0:
                return
            loader = on.enter_context(contextlib.closing(_loader(state, container, ids)))
            progress = None
            if state.machine.rank == 0:
                progress = on.enter_context(Progress(len(ids), label=label, least_s=2.0))
            for batch in loader:
                if stopping():
                    return
                images = prepare(batch.views[0].to(state.device))
                with torch.autocast(state.device.type, dtype=dtype, enabled=dtype is not None):
                    logits = classifier.logits(images)
                yield logits.float().cpu(), batch.labels, batch.ids
                if progress is not None:
                    progress.advance(len(batch.ids))
    finally:
        classifier.train(training)


def _stop_together(stopping: Callable[[], bool]) -> None:
    if collectives.any_rank(stopping()):
        raise JudgingStopped


def _judged(state: TuneState, run: Path) -> dict[str, Any]:
    """Return what a result says of its checkpoint, see `results.Result`."""
    known: dict[str, Any] = state.facts["pretrained"]
    if state.config.fine_tune_after_block == LINEAR:
        return known
    last = open_checkpoint(run)
    return {
        **known,
        "path": str(last.path.resolve()),
        "run": str(run.resolve()),
        "step": last.record.step,
        "weights_sha256": digest(encoder_of(last)[0].native.state_dict()),
        "pretrained": known,
    }


def write_judgement(
    state: TuneState,
    run: Path,
    found: tuple[Predictions, Tensor],
    *,
    place: tuple[Path, str],
    container: Path,
    name: str,
    choice: dict[str, Any],
    trials: list[dict[str, Any]],
) -> Path:
    """Write the result folder of a classifier and print its accuracies; return the folder.

    found: from `judge`. place: of `result_folder`, run and protocol. name: of the data folder. Call
    on rank 0 alone.
    """
    config, facts = state.config, state.facts
    said, ids = found
    metrics = scores(said, classes=len(facts["classes"]))
    names = _names(state, container)
    head = None
    if config.ft_proj_selector == 0:
        layer = state.classifier.heads.linears[choice.get("head", 0)]
        head = Head(layer.weight.detach().float().cpu(), layer.bias.detach().float().cpu())
    result = Result(
        protocol=facts["protocol"],
        headline=headline(state.loader.manifest),
        data={
            "name": name,
            "classes": facts["classes"],
            "train_sha256": facts["beton_sha256"],
            "val_sha256": facts["val_sha256"],
            "train_count": facts["train_count"],
            "subset_sha256": facts["subset_sha256"],
            "val_count": len(ids),
            "split": split_kind(state.loader.manifest),
        },
        checkpoint=_judged(state, run),
        preprocessing={
            "size_px": config.image_size,
            "crop": config.data.centre,
            "mean": list(config.data.mean or ()),
            "std": list(config.data.std or ()),
            "precision": state.engine_config.precision,
        },
        settings=config.model_dump(include={"train_epochs", "train_steps", "train_batch_size"}),
        metrics=metrics,
        predictions=said,
        ids=ids,
        names=[names[place] for place in ids.tolist()],
        seed=config.seed,
        choice=choice,
        trials=trials,
        head=head,
    )
    folder = result_folder(place[0], data=result.data["name"], protocol=place[1])
    write_result(folder, result)
    shown = ", ".join(f"{name} {score}" for name, score in metrics.items())
    to_stderr(f"{len(ids):,} val images: {shown}; result: {folder}")
    return folder
