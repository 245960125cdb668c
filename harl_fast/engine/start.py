"""What a start of a pretraining is to do, decided from what its folder holds and what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harl_fast.config import RunConfig
from harl_fast.engine.checkpoint.format import (
    Checkpoint,
    Record,
    is_before_the_first,
    open_checkpoint,
)
from harl_fast.engine.config import EngineConfig
from harl_fast.engine.networks import EncoderFile, open_initial
from harl_fast.engine.provenance import new_run_id, read_provenance
from harl_fast.engine.resume import (
    Changes,
    change_text,
    check_identity,
    first_engine,
    free_with_ranks,
    recorded_engine,
    refuse_changes,
    seen_text,
    settings,
)
from harl_fast.engine.runfolder import RunFolder, run_config, signs_of_a_save
from harl_fast.errors import CheckpointError


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    config: str | None
    """Preset or file."""
    overrides: Sequence[str]
    resume: bool
    init_from: Path | None
    allow_change: Sequence[str]
    """Keys and sections of `resume.settings` that may differ from those before."""

    def allowed(self, *, epochs: int, before: int) -> list[str]:
        """Return the keys that may change; a number of epochs given may extend the run."""
        longer = epochs > before and any(text.startswith("epochs=") for text in self.overrides)
        return [*self.allow_change, *(["epochs"] if longer else [])]


@dataclass(frozen=True)
class Start:
    """What is to be done."""

    folder: RunFolder
    config: RunConfig
    engine_config: EngineConfig
    run_id: str
    """Of the run; drawn now if it is new. Rank 0's counts."""
    weights: Checkpoint | EncoderFile | None = None
    """Where the networks start from; with ``resume`` all else too."""
    resume: bool = False
    init_from: Path | None = None
    changes: Changes | None = None
    """Settings that differ from those before, as was allowed."""
    notes: list[str] = field(default_factory=list)
    """What the user should be told, one line each."""

    @property
    def record(self) -> Record | None:
        """Of the checkpoint that the run goes on from; None for a new one."""
        if self.resume and isinstance(self.weights, Checkpoint):
            return self.weights.record
        return None

    @property
    def step(self) -> int:
        """Optimizer steps done before."""
        return self.record.step if self.record is not None else 0

    @property
    def epoch(self) -> int:
        """Whole epochs done before."""
        return self.record.epoch if self.record is not None else 0

    @property
    def skipped(self) -> int:
        """Steps of these that had no effect."""
        return self.record.skipped if self.record is not None else 0


def decide(folder: RunFolder, engine_config: EngineConfig, asked: Asked) -> Start:
    """Return what a start is to do; nothing is written.

    Raises HarlError if a run to be resumed would not go on as it began, or its files are damaged.
    """
    if asked.resume:
        first = is_before_the_first(folder.checkpoints)
        return (_begin_again if first else _continue)(folder, engine_config, asked)
    config = run_config(folder, name=asked.config, overrides=asked.overrides, resume=False)
    weights = None if asked.init_from is None else open_initial(asked.init_from, config.model)
    return Start(
        folder=folder,
        config=config,
        engine_config=engine_config,
        run_id=read_provenance(folder.provenance).run_id or new_run_id(),
        weights=weights,
        init_from=asked.init_from,
        notes=[] if weights is None else [*weights.notes],
    )


def _begin_again(folder: RunFolder, engine_config: EngineConfig, asked: Asked) -> Start:
    """Return the start of a run that ended before its first checkpoint was complete.

    Raises CheckpointError if it did not, so that its checkpoints were lost.
    """
    known = read_provenance(folder.provenance)
    before = run_config(folder, name=None, overrides=(), resume=True)
    signs = list(signs_of_a_save(folder, checkpoint_epochs=before.log.checkpoint_epochs))
    # Earlier starts may be of a run that was taken away: a start at step 0 has looked for that.
    if known.starts and known.starts[-1].step > 0:
        signs.append(f"{folder.provenance.name} has a start from step {known.starts[-1].step}")
    if signs:
        raise CheckpointError(
            f"{folder.checkpoints} holds no complete checkpoint, but the run had one: "
            f"{'; '.join(signs)}. Bring the checkpoints back, or start again in a new folder"
        )
    config = run_config(folder, name=asked.config, overrides=asked.overrides, resume=True)
    # A folder of an older version, or a start that was killed in between, may lack engine.json.
    engine_before = first_engine(folder.engine) if folder.engine.exists() else engine_config
    changes = refuse_changes(
        settings(before, engine_before),
        settings(config, engine_config),
        allowed=asked.allowed(epochs=config.epochs, before=before.epochs),
        where=str(folder.path),
        free=free_with_ranks(engine_before.batches, engine_config.batches),
    )
    source = known.starts[0].init_from if known.starts else None
    weights = None if source is None else open_initial(Path(source), config.model)
    note = f"{folder.path} has no complete checkpoint yet: the run begins again"
    return Start(
        folder=folder,
        config=config,
        engine_config=engine_config,
        run_id=known.run_id or new_run_id(),
        weights=weights,
        init_from=None if source is None else Path(source),
        changes=changes,
        notes=[note, *(() if weights is None else weights.notes)],
    )


def _continue(folder: RunFolder, engine_config: EngineConfig, asked: Asked) -> Start:
    """Return the start of a run that goes on after its latest checkpoint."""
    known = read_provenance(folder.provenance)
    weights = open_checkpoint(folder.checkpoints, verify=True)
    check_identity(weights, known.run_id)
    record = weights.record
    config = run_config(
        folder, name=asked.config, overrides=asked.overrides, resume=True, record=record.config
    )
    engine_before = recorded_engine(weights)
    changes = refuse_changes(
        settings(record.config, engine_before),
        settings(config, engine_config),
        allowed=asked.allowed(epochs=config.epochs, before=record.config.epochs),
        where=str(weights.path),
        free=free_with_ranks(engine_before.batches, engine_config.batches),
    )
    allowed = f"changed after step {record.step}: {change_text(changes)}"
    seen = [
        seen_text(sync_bn, batches)
        for sync_bn, batches in (
            (record.config.model.sync_bn, engine_before.batches),
            (config.model.sync_bn, engine_config.batches),
        )
    ]
    told = f"BatchNorm sees {seen[0]} -> {seen[1]} at once after step {record.step}"
    return Start(
        folder=folder,
        config=config,
        engine_config=engine_config,
        run_id=known.run_id or record.run_id or new_run_id(),
        weights=weights,
        resume=True,
        changes=changes,
        notes=[
            *weights.notes,
            *([allowed] if changes else []),
            *([told] if seen[0] != seen[1] else []),
        ],
    )
