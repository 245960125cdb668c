"""What a start of a pretraining is to do, decided from what its folder holds and what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harl_fast.config import RunConfig
from harl_fast.data.views.augment import check_augmentations
from harl_fast.engine.checkpoint.format import Checkpoint, is_before_the_first
from harl_fast.engine.config import EngineConfig
from harl_fast.engine.initial import EncoderFile, open_initial
from harl_fast.engine.networks import tensor_shapes
from harl_fast.engine.resume import (
    Changes,
    allowed_changes,
    change_text,
    changed,
    check_unsaved,
    first_engine,
    open_latest,
    recorded_engine,
    seen_text,
)
from harl_fast.engine.runfolder import run_config
from harl_fast.engine.session import Beginning
from harl_fast.engine.views import sizes_in
from harl_fast.errors import CheckpointError, ConfigError
from harl_fast.model.backbones import feature_size
from harl_fast.model.loss import term_weights
from harl_fast.provenance import new_run_id, read_provenance
from harl_fast.runfiles import RunFolder
from harl_fast.schedules import weight_schedule

_OF_NETWORK = ("model.", "loss.level", "data.views")
"""Keys that the network's tensors are a function of."""


@dataclass(frozen=True)
class StartRequest:
    """What the command line asks for."""

    config: str | None
    """Preset or file."""
    overrides: Sequence[str]
    resume: bool
    init_from: Path | None
    allow_change: Sequence[str]
    """Keys and sections of `resume.settings` that may differ from those before."""


@dataclass(frozen=True, kw_only=True)
class Start(Beginning):
    """What a start of a pretraining is to do."""

    config: RunConfig
    weights: Checkpoint | EncoderFile | None = None
    """Where a new run's networks start from, if not at random."""

    @property
    def epoch(self) -> int:
        """Whole epochs done before."""
        return 0 if self.record is None else self.record.epoch


def decide(folder: RunFolder, engine_config: EngineConfig, request: StartRequest) -> Start:
    """Return what a start is to do; nothing is written.

    Raises HarlError if a run to be resumed would not go on as it began, or its files are damaged.
    """
    if not request.resume:
        config = _asked_config(folder, request)
        return _first_start(folder, config, engine_config, init_from=request.init_from)
    first = is_before_the_first(folder.checkpoints)
    return (_begin_again if first else _continue)(folder, engine_config, request)


def _asked_config(
    folder: RunFolder, request: StartRequest, *, record: RunConfig | None = None
) -> RunConfig:
    """Return the configuration that is asked for, see `run_config`.

    Raises ConfigError also for what `load_config` cannot know: names that are in no table of loss
    terms, backbones or augmentations, sizes of views of which a backbone makes no map, and
    schedules that are none.
    """
    config = run_config(
        folder,
        name=request.config,
        overrides=request.overrides,
        resume=request.resume,
        record=record,
    )
    for key in ("alpha", "beta"):
        try:
            weight_schedule(getattr(config.loss, key))
        except ConfigError as error:
            raise ConfigError(f"loss.{key}: {error}") from error
    term_weights(config.loss, alpha=1.0, beta=1.0)
    check_augmentations(config.data.views)
    for size_px in sizes_in(config):
        feature_size(config.model, size_px=size_px, level=config.loss.level)
    return config


def _first_start(
    folder: RunFolder,
    config: RunConfig,
    engine_config: EngineConfig,
    *,
    init_from: Path | None,
    changes: Changes | None = None,
    notes: Sequence[str] = (),
) -> Start:
    """Return a start from step 0, with the weights of ``init_from`` if it is given."""
    weights = None if init_from is None else open_initial(init_from, config.model)
    return Start(
        folder=folder,
        config=config,
        engine_config=engine_config,
        run_id=read_provenance(folder.provenance).run_id or new_run_id(),
        weights=weights,
        init_from=init_from,
        changes=changes,
        notes=[*notes, *(() if weights is None else weights.notes)],
    )


def _begin_again(folder: RunFolder, engine_config: EngineConfig, request: StartRequest) -> Start:
    """Return the start of a run that ended before its first checkpoint was complete.

    Raises CheckpointError if it did not, so that its checkpoints were lost.
    """
    before = run_config(folder, name=None, overrides=(), resume=True)
    starts = check_unsaved(folder, checkpoint_epochs=before.log.checkpoint_epochs).starts
    config = _asked_config(folder, request)
    # A folder of an older version, or a start that was killed in between, may lack engine.json.
    engine_before = first_engine(folder.engine) if folder.engine.exists() else engine_config
    pairs = (before, engine_before), (config, engine_config)
    changes = _allowed_changes(request, *pairs, where=str(folder.path))
    source = starts[0].init_from if starts else None
    return _first_start(
        folder,
        config,
        engine_config,
        init_from=None if source is None else Path(source),
        changes=changes,
        notes=[f"{folder.path} has no complete checkpoint yet: the run begins again"],
    )


def _continue(folder: RunFolder, engine_config: EngineConfig, request: StartRequest) -> Start:
    """Return the start of a run that goes on after its latest checkpoint."""
    checkpoint, run_id = open_latest(folder)
    record, notes = checkpoint.record, [*checkpoint.notes]
    if record.finetune is not None:
        raise CheckpointError(
            f"{folder.path} holds a fine-tuning: continue it with launch/finetune.py --resume"
        )
    config = _asked_config(folder, request, record=record.config)
    _refuse_another_network(record.config, config, where=str(checkpoint.path))
    pairs = (record.config, recorded_engine(checkpoint)), (config, engine_config)
    changes = _allowed_changes(request, *pairs, where=str(checkpoint.path))
    if changes:
        notes.append(f"changed after step {record.step}: {change_text(changes)}")
    seen = [seen_text(each.model.sync_bn, engine.batches) for each, engine in pairs]
    if seen[0] != seen[1]:
        notes.append(f"BatchNorm sees {seen[0]} -> {seen[1]} at once after step {record.step}")
    return Start(
        folder=folder,
        config=config,
        engine_config=engine_config,
        run_id=run_id,
        checkpoint=checkpoint,
        changes=changes,
        notes=notes,
    )


def _refuse_another_network(before: RunConfig, now: RunConfig, *, where: str) -> None:
    """Raise ConfigError where a checkpoint's tensors do not fit, whatever the user allows."""
    differs = changed(before.model_dump(), now.model_dump())
    found = {key: differs[key] for key in differs if key.startswith(_OF_NETWORK)}
    if found and tensor_shapes(before) != tensor_shapes(now):
        raise ConfigError(
            f"{where}: its tensors are of another network: {change_text(found)}. No --allow-change "
            f"makes them fit. Leave the options that ask for it out, and undo changes of "
            f"config.yaml; or start a new run in another folder"
        )


def _allowed_changes(
    request: StartRequest,
    before: tuple[RunConfig, EngineConfig],
    now: tuple[RunConfig, EngineConfig],
    *,
    where: str,
) -> Changes:
    """Return `allowed_changes`, to which ``--epochs`` adds."""
    longer = now[0].epochs > before[0].epochs  # which ``--epochs`` alone allows
    given = longer and any(text.startswith("epochs=") for text in request.overrides)
    allowed = [*request.allow_change, *(["epochs"] if given else [])]
    return allowed_changes(before, now, allowed=allowed, where=where)
