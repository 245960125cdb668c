"""Runs what `make evidence` compares, one trial after the other; finished ones are kept."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from harl_fast.data.container.manifest import find_container, read_manifest
from harl_fast.demoset import SIDE_PX, SPLITS, holds
from harl_fast.engine.runfolder import json_lines
from harl_fast.errors import ConfigError, DataError, HarlError
from harl_fast.files import format_seconds, write_json
from harl_fast.host import cpu, usable_cores
from harl_fast.kinds import Real, Text, Whole, of_kind
from harl_fast.provenance import code_version
from harl_fast.results import write_result
from harl_fast.runfiles import RunFolder, discard_run
from harl_fast.steps import ROOT, TRAINING, run
from harl_fast.textfile import read_json, tree_sha256
from harl_fast.tools.curves import probe_curves
from harl_fast.tools.evidence_arms import DRAWN, NETWORK, STORED_PX, Kind, Trial

READ_OUTS_VERSION = 1
"""Raise it when the same encoder gives other figures: all trials are then judged anew."""
QUICK_NETWORK = "0.02"
"""Training time of the mask network in the quick form, relative to the usual one."""
CPU = ROOT / "ds_configs" / "cpu.json"
"""The engine of all trainings: one rank, batch 64, on any machine."""
Results = Mapping[Trial, Mapping[str, Any]]


class _ResultFile(BaseModel):
    """What the page and `time_left` need of a result's file."""

    accuracy: dict[Text, Real]
    counts: dict[Text, Whole]
    machine: Text
    code: Text
    time: Text
    images_seen: Whole = 0
    seconds: Real | None = None
    curve: list[tuple[Whole, Real]] = []


class _EngineFile(BaseModel):
    """What a trial's length is counted by."""

    train_batch_size: Annotated[Whole, Field(ge=1)]


class EvidenceSettings(BaseModel):
    """Content of ``settings.json``: what all trials of a folder share."""

    precision: Literal["bf16", "fp32"]
    photos: str | None
    """Folder or list of the photos."""


def settle(out: Path, *, photos: Path | None) -> EvidenceSettings:
    """Return a folder's settings, which are written where there are none.

    Training computes in bf16 where the first machine's processor has instructions for it, and all
    later trials do so, too. photos: may come later, and must then stay the same. Raises DataError.
    """
    path, given = out / "settings.json", photos and str(photos.resolve())
    half = "bf16" if cpu()[1] & {"avx512_bf16", "amx_bf16"} else "fp32"
    found = EvidenceSettings(precision=half, photos=None)
    if path.exists():
        tree, remedy = read_json(path, error=DataError), "Give another --out"
        found = of_kind(tree, EvidenceSettings, where=str(path), remedy=remedy, error=DataError)
    if given and found.photos not in (None, given) and any(out.glob("*/photos-*")):
        raise DataError(
            f"{out} holds results on the photos {found.photos}, not {given}: give another --out"
        )
    found = found.model_copy(update={"photos": given or found.photos})
    write_json(path, found.model_dump())
    return found


@dataclass(frozen=True)
class Evidence:
    """A folder of trials: their containers, runs and results."""

    out: Path
    """Absolute, as all paths are that are handed on."""
    settings: EvidenceSettings
    quick: bool = False

    def provenance(self, trial: Trial) -> dict[str, Any]:
        """Return all that decides a trial's result, as JSON gives it back."""
        facts = trial.facts(self.settings.precision)
        read = {"read_outs": READ_OUTS_VERSION, "probes": trial.suite.probes}
        made: dict[str, Any] = json.loads(json.dumps({**facts, **read}))
        return made

    def finished(self, trials: Sequence[Trial]) -> Results:
        """Return the results that are there, and are of these very trials."""
        found = {}
        for trial in trials:
            path, remedy = self._result(trial), "Delete it, and its trial is judged again"
            if not path.exists():
                continue
            try:
                tree = read_json(path, error=DataError, most_bytes=1 << 20)
            except DataError as error:
                raise DataError(f"{error}. {remedy}") from error
            if tree.get("provenance") == self.provenance(trial):
                of_kind(tree, _ResultFile, where=str(path), remedy=remedy, error=DataError)
                found[trial] = tree
        return found

    def run(self, trial: Trial) -> None:
        """Train, unless that is done already, and judge; write the result."""
        self._check_photos(trial)
        judged_on, scores = self._judged_on(trial), self.out / "scores" / f"{trial.slug}.json"
        command: list[str | Path] = ["-m", "harl_fast.tools.evidence_scores", trial.kind]
        command += ["--data", judged_on, "--seed", str(trial.seed), "--out", scores]
        for name, folder in self._probes(trial).items():
            command += ["--probe", name, folder]
        if trial.arm.trained:
            folder = self._train(trial)
            run(*command, "--ckpt", folder)
        else:
            words = [word for each in trial.words for word in ("--set", each)]
            run(*command, "--config", trial.suite.preset, *words)
        manifests = {split: read_manifest(find_container(judged_on, split)) for split in SPLITS}
        result = {
            **read_json(scores, error=DataError),
            "counts": {split: each.count for split, each in manifests.items()},
            "judged_on": {split: each.beton_sha256 for split, each in manifests.items()},
            "machine": f"{cpu()[0] or 'unknown processor'}, cores: {usable_cores()}",
            "code": code_version(),
            **(self._of_training(trial, folder) if trial.arm.trained else {}),
        }
        provenance = self.provenance(trial)
        write_result(self._result(trial), result, provenance=provenance, name=trial.slug)

    def _result(self, trial: Trial) -> Path:
        return self.out / "results" / f"{trial.slug}.json"

    def _train(self, trial: Trial) -> Path:
        """Return the folder of a trial's run, which is finished, gone on with, or begun."""
        digest = tree_sha256(trial.facts(self.settings.precision))[:8]
        folder = self.out / "runs" / f"{trial.slug}-{digest}"
        files = RunFolder(folder)
        if files.finished.exists():
            return folder
        data = self._containers(trial, trial.arm.masks)
        words = None if any(files.checkpoints.glob("step-*.json")) else trial.words
        if words is not None:
            discard_run(folder, engine=CPU)
        precision = self.settings.precision
        run(*pretraining(trial.suite.preset, words, data, folder, precision=precision))
        if not files.finished.exists():
            raise HarlError(f"{folder} was stopped before its end; the same command goes on")
        return folder

    def _of_training(self, trial: Trial, folder: Path) -> dict[str, Any]:
        """Return a run's length and, as far as its log is there, its time and its probes."""
        logged = json_lines(RunFolder(folder).metrics)
        found = [each.get("img_s") for each in logged]
        rates = [rate for rate in found if isinstance(rate, int | float) and 0 < rate < math.inf]
        path, remedy = RunFolder(folder).engine, f"Delete {folder}, and it is trained again"
        tree = read_json(path, error=DataError)
        engine = of_kind(tree, _EngineFile, where=str(path), remedy=remedy, error=DataError)
        batch = engine.train_batch_size
        data = read_manifest(find_container(self._containers(trial, trial.arm.masks), "train"))
        images = data.count // batch * batch * trial.config.epochs
        return {
            "images_seen": images,
            "seconds": images / statistics.median(rates) if rates else None,
            "trained_on": data.beton_sha256,
            "curve": probe_curves(folder)["probe_knn"],
        }

    def _check_photos(self, trial: Trial) -> None:
        """Raise DataError if photos have changed between the containers that a trial compares."""
        if trial.kind == "composites":
            return
        first, others = self._judged_on(trial), [*self._probes(trial).values()]
        if trial.arm.trained:
            others.append(self._containers(trial, trial.arm.masks))
        for split, other in itertools.product(SPLITS, others):
            ours, theirs = (read_manifest(find_container(each, split)) for each in (first, other))
            facts = [(m.count, m.names_sha256, m.prints_sha256) for m in (ours, theirs)]
            if facts[0] != facts[1]:
                raise DataError(
                    f"{other} was made of other {split} photos than {first}: "
                    f"{self.settings.photos} has changed in between. Give another --out, where all "
                    f"are made anew"
                )

    def _judged_on(self, trial: Trial) -> Path:
        if trial.kind == "composites":
            return self._drawn(trial)
        return self._containers(trial, next(iter(trial.suite.probes.values()), "full"))

    def _probes(self, trial: Trial) -> dict[str, Path]:
        """Return containers by the name of their masks: none that the arm was trained with."""
        used = trial.arm.masks if trial.arm.trained else ""
        return {
            name: self._containers(trial, masks)
            for name, masks in trial.suite.probes.items()
            if name not in used
        }

    def _containers(self, trial: Trial, masks: str) -> Path:
        """Return the folder of containers of a suite's images with these masks."""
        method = masks
        if DRAWN in masks:
            method = method.replace(DRAWN, _quoted(self._drawn(trial) / "source" / "masks"))
        if NETWORK in masks:
            method = method.replace(NETWORK, _quoted(self._network(trial)))
        plain = re.sub(r"[^\w.]+", "-", masks).strip("-").lower()
        folder = self._place(trial, plain, masks)
        if all((folder / f"{split}.json").exists() for split in SPLITS):
            return folder
        if trial.kind == "composites":
            source, size = self._drawn(trial) / "source", ["--mask-size", str(SIDE_PX)]
        else:
            source, size = self._photos(trial), ["--max-resolution", str(STORED_PX)]
        where = ("--data", source, "--out", folder)
        run("-m", "preprocess.beton", *where, *size, "--mask-method", method)
        return folder

    def _drawn(self, trial: Trial) -> Path:
        """Return the folder of the composites, with the files that they were drawn into."""
        folder = self._place(trial, "drawn")
        if not holds(folder, trial.source):
            size = ["--demo-images", str(trial.images), "--mask-size", str(SIDE_PX)]
            run("-m", "preprocess.beton", "--out", folder, *size)
        return folder

    def _photos(self, trial: Trial) -> Path:
        """Return the folder of the photos, or a list of as many as are wanted."""
        photos = Path(self.settings.photos or "")
        if trial.images is None:
            return photos
        listed = self._place(trial, "photos").with_suffix(".csv")
        if not listed.exists():
            run("-m", "preprocess.balanced", photos, "--count", str(trial.images), "--out", listed)
        return listed

    def _network(self, trial: Trial) -> Path:
        """Return the weights of the mask network, trained on the photos."""
        file = self._place(trial, "network").with_suffix(".safetensors")
        if not file.exists():
            length = ["--length", QUICK_NETWORK] if self.quick else []
            photos = self._photos(trial)
            run(
                "-m", "preprocess.masks.selftrained.train", "--data", photos, "--out", file, *length
            )
        return file

    def _place(self, trial: Trial, name: str, *of: str) -> Path:
        """Return a place of its own for what is made of a suite's images."""
        digest = tree_sha256({"images": trial.source, "of": of})[:8]
        return self.out / "data" / f"{trial.kind}-{name}-{digest}"


def _quoted(path: Path) -> str:
    """Return a path as YAML takes it, whatever is in it."""
    return json.dumps(str(path), ensure_ascii=False)


def pretraining(
    preset: str,
    words: Sequence[str] | None,
    data: Path,
    folder: Path,
    *,
    precision: str,
) -> list[str | Path]:
    """Return the command of a training, for `steps.run`. words: overrides; None goes on with it."""
    command: list[str | Path] = [*TRAINING, "launch/pretrain.py", "--deepspeed_config", CPU]
    command += ["--data", data, "--run", folder, "--quiet"]
    if words is None:
        return [*command, "--resume"]
    command += ["--config", preset, *(word for each in words for word in ("--set", each))]
    return command + (["--engine-set", "bf16.enabled=true"] if precision == "bf16" else [])


def run_all(evidence: Evidence, trials: Sequence[Trial], *, after: Callable[[], object]) -> None:
    """Run the trials that are not finished; ``after`` is called with nothing after each."""
    done = dict(evidence.finished(trials))
    for number, trial in enumerate(trials, start=1):
        if trial in done:
            continue
        left = time_left([each for each in trials if each not in done], done)
        about = f"[{number}/{len(trials)}] {trial.kind}/{trial.name}, seed {trial.seed}{left}"
        print(f"\n{about}", flush=True)
        evidence.run(trial)
        done |= evidence.finished([trial])
        after()


def time_left(todo: Sequence[Trial], done: Results) -> str:
    """Return in words how long trainings will take, by those of the same suite that are done."""
    took: dict[Kind, list[float]] = {}
    for trial, result in done.items():
        if trial.arm.trained and result["seconds"] is not None:
            took.setdefault(trial.kind, []).append(float(result["seconds"]))
    todo = [trial for trial in todo if trial.arm.trained]
    known = [statistics.fmean(took[trial.kind]) for trial in todo if trial.kind in took]
    if not known:
        return ""
    more = "about" if len(known) == len(todo) else "over"
    return f"; {more} {format_seconds(sum(known))} of training left"


def check_masks(trials: Sequence[Trial]) -> None:
    """Raise HarlError for mask methods that a conversion would refuse when their turn comes."""
    methods = {place: method for trial in trials for place, method in trial.methods.items()}
    words = [word for pair in methods.items() for word in ("--method", *pair)]
    if words:
        run("-m", "preprocess.masks.check", *words, "--later", NETWORK, "--later", DRAWN)


def check_data(data: Path | None) -> None:
    """Raise ConfigError for photos that masks of several methods cannot be made of."""
    if data is None:
        return
    if not data.exists():
        raise ConfigError(f"--data {data} is not there: give a folder with train/ and val/")
    if (data / "train.json").exists():
        raise ConfigError(
            f"--data {data} holds containers, whose masks are of one method: give the folder of "
            f"the images, with train/ and val/"
        )
