"""Fine-tuning and linear evaluation from a command line's values to results and exit code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harl_fast.engine.config import EngineConfig
from harl_fast.engine.machine import Machine
from harl_fast.engine.runfolder import mark, open_run_folder
from harl_fast.engine.session import Training, leave, note_beginning, serve
from harl_fast.engine.stop import StopSignal
from harl_fast.errors import CheckpointError, ConfigError, nearest
from harl_fast.files import check_output
from harl_fast.finetuning import (
    LINEAR_PRESETS,
    FinetuneConfig,
    change_finetuning,
    load_finetuning,
    presets,
    reading,
)
from harl_fast.options import SEED_MAX
from harl_fast.runfiles import SEEDS, RunFolder, home, runs_of_seeds

if TYPE_CHECKING:
    from harl_fast.engine.finetune_start import TuneStart
    from harl_fast.engine.loop import Loop
    from harl_fast.engine.supervised import TuneState

Mode = Literal["train_then_eval", "train", "eval"]
HEAD_LR_GRID = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Factors of the linear protocol's learning rate, one head for each."""
HOLD_OUT = 10_000
"""Training images that choose among its heads (BYOL, appendix C.1: 10,009)."""


def finetune(*, run: Path, seeds: int = 1, **settings: Any) -> int:
    """Run one rank of a fine-tuning and return its exit code, see `Loop.run`.

    settings: the other fields of `Finetuning`. With several seeds each has its run in a folder
    ``run/seed-N``, and ``run/seeds.json`` holds all results with mean and deviation; what is
    finished is not repeated with ``resume``. Raises HarlError.
    """
    training = Finetuning(run=run, **settings)
    code = serve([training]) if seeds == 1 else _several(training, seeds=seeds)
    leave()
    return code


def linear_protocol(
    *,
    engine_file: Path | None,
    ckpt: Path,
    data: Path,
    preset: str = "seed-readme",
    run: Path | None = None,
    random: bool = False,
    size_px: int | None = None,
    subset: str | None = None,
    **others: Any,
) -> int:
    """Run one rank of the ``imagenet`` linear protocol and return its exit code.

    A frozen network, random crops and flips, and one head per factor of `HEAD_LR_GRID`, trained
    side by side; the best on `HOLD_OUT` training images, a tenth at most, is reported. preset: one
    of `finetuning.LINEAR_PRESETS`. run: where it trains, a folder inside the checkpoint's run by
    default; one that is there already goes on. The result stands beside those of other protocols,
    named ``imagenet``, of another preset than the first ``imagenet-<preset>``. random: judge
    a freshly initialised network in the same way, too. others: epochs, batch, seed, subset_seed,
    crop, mean, std and workers, as of launch/lineval.py. Raises HarlError.
    """
    if engine_file is None:
        raise ConfigError(
            "--protocol imagenet trains under the engine: give --deepspeed_config, such as "
            "ds_configs/cpu.json"
        )
    if preset not in LINEAR_PRESETS:
        near = nearest(preset, LINEAR_PRESETS)
        raise ConfigError(f"--preset {preset!r} is none of {', '.join(LINEAR_PRESETS)}{near}")
    asked = {"head_lr_grid": HEAD_LR_GRID, "hold_out": HOLD_OUT, "image_size": size_px}
    asked |= {"subset": subset or ""}
    keys = {"epochs": "train_epochs", "batch": "train_batch_size", "seed": "seed"}
    keys |= {"subset_seed": "subset_seed"}
    asked |= {key: others[name] for name, key in keys.items() if name in others}
    names = {"centre": "crop", "mean": "mean", "std": "std", "workers": "workers"}
    given = {key: others.get(name) for key, name in names.items()}
    results = home(ckpt)
    protocol = "imagenet" if preset == next(iter(LINEAR_PRESETS)) else f"imagenet-{preset}"
    base = run or results / "linear" / f"{data.resolve().name}-{preset}"
    places = {False: base, True: base.with_name(f"{base.name}-random")}
    code = serve(
        Finetuning(
            engine_file=engine_file,
            preset=LINEAR_PRESETS[preset],
            flags={**asked, "random": fresh},
            overrides=reading(given),
            ckpt=ckpt,
            data=data,
            run=places[fresh],
            whole=base if fresh else None,
            resume=RunFolder(places[fresh]).config.exists(),
            protocol=protocol,
            results=results,
        )
        for fresh in (False, True)[: 1 + random]
    )
    leave()
    return code


@dataclass(kw_only=True)
class Finetuning(Training["TuneState"]):
    """A fine-tuning: the command line's values and the objects built from them."""

    preset: str | None
    flags: Mapping[str, Any]
    """Values by key of `FinetuneConfig`."""
    overrides: Sequence[str] = ()
    network: Mapping[str, Any] = field(default_factory=dict)
    """What the checkpoint's network has to be, by key of section ``model``."""
    ckpt: Path | None
    mode: Mode = "train_then_eval"
    protocol: str = ""
    """What results are named after; left out, the preset."""
    results: Path | None = None
    """Folder whose ``eval/`` gets the result, a random network's under a name of its own; left out,
    the run's."""
    found: dict[str, float] = field(default_factory=dict)
    """After an evaluation: its metrics in percent; on rank 0."""

    source_option: ClassVar[str] = "--ckpt"

    def __post_init__(self) -> None:
        self.resume = self.resume or self.mode == "eval"

    def settle(self, machine: Machine) -> EngineConfig:
        """Return the engine's configuration, with the global batch of the fine-tuning's."""
        folder = RunFolder(self.run)
        if any(text.startswith("train_batch_size=") for text in self.engine_overrides):
            raise ConfigError(
                "--engine-set train_batch_size: of a fine-tuning it is a setting of its own, "
                "--train-batch-size"
            )
        if not self.resume and self.ckpt is None:
            raise ConfigError("--ckpt is missing: give a run folder or a file of weights")
        if self.preset is not None or not self.resume or not folder.config.exists():
            config = (
                load_finetuning(self.preset, flags=self.flags, overrides=self.overrides)
                if self.preset is not None
                else change_finetuning(FinetuneConfig(), flags=self.flags, overrides=self.overrides)
            )
        else:
            config = load_finetuning(str(folder.config), flags=self.flags, overrides=self.overrides)
        self._config = config
        batch_global = config.train_batch_size
        engine_config, self._told = self._settled(machine, batch_global=batch_global)
        return engine_config

    def decide(self, folder: RunFolder, engine_config: EngineConfig, machine: Machine) -> TuneStart:
        """Settle what the start does and open the data; return the start."""
        from harl_fast.engine.checkpoint.format import is_before_the_first
        from harl_fast.engine.finetune_start import (
            Asked,
            first_start,
            go_on,
            network_of,
            train_loader,
        )

        asked = Asked(
            data=self.data,
            needs_val=self.mode != "train",
            batch_may_fall=self._batch_may_fall(),
            network=self.network,
            protocol=self.protocol or Path(self.preset or "finetune").stem,
            ckpt=self.ckpt,
            allow_change=self.allow_change,
            # Results stand elsewhere for `lineval` alone, which has no --resume.
            remedy=f"Give the same options, or move {self.run} away to train heads anew"
            if self.results
            else "",
        )
        common = folder, self._config, engine_config, asked
        if self.mode == "eval" and is_before_the_first(folder.checkpoints):
            raise CheckpointError(
                f"{folder.path} holds no checkpoint that could be judged: train it with --resume"
            )
        start = go_on(*common) if self.resume else first_start(*common)
        start.notes.extend(self._told)
        self._start, self._classifier = start, network_of(start)
        self._loader = train_loader(start, machine)
        return start

    def _batch_may_fall(self) -> bool:
        """See `finetune_start.Asked`."""
        asked = [*self.flags, *(text.partition("=")[0] for text in self.overrides)]
        shipped = self.preset in presets() if self.preset is not None else not self.resume
        return shipped and "train_batch_size" not in asked

    def facts(self) -> dict[str, str]:
        """Return what must be the same on all ranks."""
        from harl_fast.engine.resume import settings_sha256

        start = self._start
        return {
            "configurations": settings_sha256(start.config),
            "training sets": self._loader.manifest.beton_sha256,
            "subsets": start.facts["ids_sha256"],
            "validation sets": start.facts["val_sha256"],
            "pretrained networks": start.facts["pretrained"]["weights_sha256"],
            "checkpoints": "" if start.checkpoint is None else start.checkpoint.sha256,
        }

    def prepare(self, machine: Machine) -> TuneState:
        """Build what the rank trains with, and note the start in the run folder."""
        from harl_fast.engine.supervised import build
        from harl_fast.eval.subsets import write_subset

        start = self._start
        state = build(
            start.config,
            start.engine_config,
            machine,
            loader=self._loader,
            classifier=self._classifier,
            facts=start.facts,
            checkpoint=start.checkpoint,
        )
        if start.record is not None:
            self._loader.load_state_dict(start.record.position)
        if machine.rank == 0:
            if self.mode != "train":
                place = RunFolder(self.results or self.run).evaluations
                check_output(place, option="--ckpt" if self.results else "--run", folder=True)
            if start.config.subset and not start.folder.subset.exists():
                import torch

                ids = torch.from_numpy(start.data.subset)
                write_subset(start.folder.subset, start.data.names, ids)
            note_beginning(
                start,
                start.facts,
                ranks=machine.ranks,
                manifest=self.data / "train.json",
                whole=self.whole,
            )
        return state

    def loop(self, state: TuneState, *, stop: StopSignal, still_held: Callable[[], bool]) -> Loop:
        """Return the training; in mode eval there is nothing left of it."""
        from harl_fast.engine.loop import Loop
        from harl_fast.engine.monitoring import Monitor
        from harl_fast.engine.supervised import TuneStepper

        start = self._start
        self._total = state.schedule.total
        if self.mode == "eval":
            epochs = start.step // state.schedule.steps_per_epoch
            schedule = replace(state.schedule, steps=start.step, epochs=epochs)
            state = replace(state, schedule=schedule)
        stepper = TuneStepper(state, step=start.step, skipped=start.skipped)
        return Loop(
            state,
            start.folder,
            stepper=stepper,
            monitor=Monitor(state, stepper.meter, start.folder, step=start.step, quiet=self.quiet),
            run_id=start.run_id,
            time_limit_s=self.time_limit_s,
            stop=stop,
            still_held=still_held,
        )

    def after(self, loop: Loop, state: TuneState) -> str:
        """Evaluate; return why the run is not at its end, or an empty text."""
        from harl_fast.engine.judge import (
            JudgingStopped,
            choose_head,
            judge,
            right_answers,
            write_judgement,
        )
        from harl_fast.eval.metrics import scores

        data = self._start.data
        if self.mode == "train" or data.val is None:
            return ""
        choice: dict[str, Any] = {}
        trials: list[dict[str, Any]] = []

        def stopping() -> bool:
            return loop.stop.number > 0

        try:
            if len(data.held_out):
                shares = right_answers(state, data.train, data.held_out, stopping=stopping)
                choice, trials = choose_head(state, shares, count=len(data.held_out))
            found = judge(state, data.val, head=choice.get("head", 0), stopping=stopping)
        except JudgingStopped:
            return loop.stop.reason or "another rank's signal"
        if state.machine.rank == 0:
            write_judgement(
                state,
                self._start.folder.path,
                found,
                place=self._place(),
                container=data.val,
                name=self.data_name,
                choice=choice,
                trials=trials,
            )
            accuracies = scores(found[0], classes=len(self._start.facts["classes"]))
            self.found = {name: score.value for name, score in accuracies.items()}
        return "" if loop.stepper.step == self._total else "evaluated before its end"

    def _place(self) -> tuple[Path, str]:
        """Return the folder whose ``eval/`` gets the result, and what the result is named after."""
        protocol = self._start.facts["protocol"]
        if self.results is None:
            return self.run, protocol
        return self.results, f"{protocol}-random" if self._start.config.random else protocol


def _several(training: Finetuning, *, seeds: int) -> int:
    """Train once per seed, from its own on; write all results with mean and deviation."""
    from harl_fast.engine.machine import this_machine

    if RunFolder(training.run).config.exists():
        raise CheckpointError(
            f"{training.run} holds a run of one seed, not folders of --seeds: give another --run"
        )
    here = this_machine()
    training.settle(here)  # refuses settings before a first folder is made
    first = training._config.seed
    if first + seeds - 1 > SEED_MAX:
        raise ConfigError(
            f"--seeds {seeds} from seed {first} on go beyond {SEED_MAX}: give a smaller --seed"
        )
    trainings = {seed: _of_seed(training, seed) for seed in range(first, first + seeds)}
    for each in trainings.values() if not here.elsewhere else ():
        open_run_folder(each.run, resume=each.resume, source=each.source_option)
    if training.resume and not here.elsewhere:
        _check_alike([*trainings.values()], training.run, here)
    code = serve(trainings.values())
    if code or not all(each.done for each in trainings.values()):
        return code
    results = {seed: each.found for seed, each in trainings.items()}
    if here.rank == 0 and all(results.values()):  # of --mode train there are none
        from harl_fast.engine.seeds import write_seeds

        one = trainings[first]
        write_seeds(training.run / SEEDS, results, facts=one.facts(), config=one._start.config)
    if here.local_rank == 0:
        mark(RunFolder(training.run).finished, step=seeds, reason="done")
    return 0


def _of_seed(training: Finetuning, seed: int) -> Finetuning:
    """Return the training of one of several seeds, in a folder of its own."""
    folder = RunFolder(training.run / f"seed-{seed}")
    return replace(
        training,
        run=folder.path,
        whole=training.run,
        flags={**training.flags, "seed": seed},
        resume=training.resume and folder.config.exists(),
        found={},
    )


def _check_alike(trainings: Sequence[Finetuning], whole: Path, here: Machine) -> None:
    """Raise HarlError unless all seeds that go on or begin are trained as the first of them."""
    from harl_fast.engine.seeds import check_seed

    begun = [each for each in trainings if each.resume]
    if not begun:
        if others := runs_of_seeds(whole):
            raise ConfigError(
                f"--resume: {whole} holds {others[0].name}, and not {trainings[0].run.name}: give "
                f"its first seed by --seed"
            )
        return
    first = begun[0]
    engine_config = first.settle(here)
    for each in (other for other in trainings if other is not first):
        own = each.settle(here)
        check_seed(
            (first._config, engine_config),
            (each._config, own),
            run=first.run,
            ckpt=None if each.resume else each.ckpt,
            batch_may_fall=each._batch_may_fall(),
        )
