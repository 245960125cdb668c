"""What a start of a fine-tuning is to do: its data, and its weights or the run that goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harl_fast.config import ModelConfig
from harl_fast.data.loader import BetonLoader
from harl_fast.data.views.color_device import Colouring
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.engine.checkpoint.format import is_before_the_first
from harl_fast.engine.config import EngineConfig, settle, with_batch
from harl_fast.engine.labelled import TuneData, open_data
from harl_fast.engine.machine import Machine
from harl_fast.engine.networks import Pretrained, load_pretrained, random_like
from harl_fast.engine.resume import (
    Changes,
    allowed_changes,
    change_text,
    check_unsaved,
    first_engine,
    open_latest,
    recorded_engine,
)
from harl_fast.engine.schema import apply_schema
from harl_fast.engine.session import Beginning
from harl_fast.engine.supervised import classifier_of
from harl_fast.errors import CheckpointError, ConfigError, shown
from harl_fast.finetuning import FinetuneConfig, change_finetuning, load_finetuning
from harl_fast.model.classifier import Classifier
from harl_fast.provenance import new_run_id, read_provenance
from harl_fast.runfiles import RunFolder

STEPS, IMAGES = 8, 8
"""Steps of an epoch that a batch is lowered to, where there are fewer images than it has; and the
least on a rank, over which BatchNorm can still tell their spread."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command line asks of a start, beside its settings."""

    data: Path
    """Folder of the containers."""
    needs_val: bool
    batch_may_fall: bool
    """To what few images allow: the global batch is a shipped preset's or the default, no wish."""
    network: Mapping[str, Any]
    """What the checkpoint's network has to be, by key of section ``model``."""
    protocol: str
    """What results are to be named after."""
    ckpt: Path | None = None
    """Whose network a new run begins with; a run that goes on knows it, and compares it if given.
    """
    allow_change: Sequence[str] = ()
    """Keys that may differ from those of the run that goes on."""
    remedy: str = ""
    """A sentence on what to do where a run would not go on as it began; for programs without
    --resume."""


@dataclass(frozen=True, kw_only=True)
class TuneStart(Beginning):
    """What a start of a fine-tuning is to do."""

    config: FinetuneConfig
    data: TuneData
    facts: dict[str, Any]
    """See `supervised.TuneState`."""
    pretrained: Pretrained | None = None
    """Where a new run's network is from."""


def first_start(
    folder: RunFolder,
    config: FinetuneConfig,
    engine_config: EngineConfig,
    asked: Asked,
    *,
    notes: Sequence[str] = (),
) -> TuneStart:
    """Return a start from step 0 with a checkpoint's network. Raises HarlError."""
    ckpt = asked.ckpt
    assert ckpt is not None  # the command line sees to it
    pretrained = load_pretrained(
        ckpt, mean=config.data.mean, std=config.data.std, size_px=config.image_size
    )
    _check_network(asked, pretrained.model, where=ckpt)
    layers = pretrained.model.projector_layers if pretrained.projector is not None else 0
    if config.num_proj_layers not in (None, layers):
        raise ConfigError(
            f"num_proj_layers {config.num_proj_layers}: the projector of {ckpt} has {layers} "
            f"layers; leave --num-proj-layers out, or give another checkpoint"
        )
    found = open_data(asked.data, config, subset=config.subset, needs_val=asked.needs_val)
    told = [*notes]
    batch, ranks = config.train_batch_size, engine_config.batches.ranks
    if asked.batch_may_fall and found.train_count < batch:
        fitting = _fitting_batch(found.train_count, ranks=ranks)
        told.append(
            f"train_batch_size {batch} is more than the {found.train_count:,} training images: "
            f"{fitting} in its place, unless another is asked for"
        )
        config, engine_config = _with_batch(config, engine_config, fitting)
    if config.random:
        pretrained = random_like(pretrained, seed=config.seed)
        told.append(f"weights: {pretrained.receipt}")
    else:
        pretrained, text = apply_schema(pretrained, config.variable_schema, seed=config.seed)
        told.append(text)
        _check_head(pretrained, config, found)
    config = _resolved(config, pretrained, layers=layers)
    return TuneStart(
        folder=folder,
        config=config,
        engine_config=engine_config,
        run_id=read_provenance(folder.provenance).run_id or new_run_id(),
        data=found,
        facts={
            **found.facts(),
            "protocol": asked.protocol,
            "pretrained": checkpoint_facts(pretrained),
        },
        pretrained=pretrained,
        init_from=ckpt,
        notes=told,
    )


def _check_network(asked: Asked, model: ModelConfig | None, *, where: Path) -> None:
    """Raise ConfigError if another network was asked for than there is."""
    for key, wanted in asked.network.items():
        if (there := getattr(model, key)) != wanted:
            raise ConfigError(
                f"{where} has {key} {there}, the command line asks for {wanted} "
                f"(--resnet-depth, --width-multiplier): leave that out, or give another checkpoint"
            )


def _fitting_batch(count: int, *, ranks: int) -> int:
    """Return a global batch for so many images: `STEPS` per epoch, if not below `IMAGES` each."""
    each = count // ranks
    most = max(2, min(IMAGES, each), each // STEPS)
    return int(ranks * 2 ** (most.bit_length() - 1))


def _with_batch(
    config: FinetuneConfig, engine_config: EngineConfig, batch: int
) -> tuple[FinetuneConfig, EngineConfig]:
    """Return both configurations with another global batch."""
    ranks, source = engine_config.batches.ranks, engine_config.source
    file = with_batch(engine_config.file, batch, ranks=ranks)
    config = config.model_copy(update={"train_batch_size": batch})
    return config, settle(file, ranks=ranks, source=source)


def _resolved(config: FinetuneConfig, pretrained: Pretrained, *, layers: int) -> FinetuneConfig:
    """Return a configuration with what it leaves to the checkpoint. layers: of its projector."""
    centre = config.data.centre or pretrained.crop
    own = {"mean": pretrained.mean, "std": pretrained.std, "centre": centre}
    reading = config.data.model_copy(update=own)
    return config.model_copy(
        update={
            "num_proj_layers": layers,
            "image_size": pretrained.size_px,
            "model": pretrained.model,
            "data": reading,
        }
    )


def _check_head(pretrained: Pretrained, config: FinetuneConfig, data: TuneData) -> None:
    """Raise ConfigError if a head of the file would be trained on, and does not fit."""
    if pretrained.head is None or config.zero_init_logits_layer:
        return
    theirs, ours = list(pretrained.classes), list(data.manifest.classes)
    if config.ft_proj_selector or len(config.head_lr_grid) > 1 or theirs != ours:
        differing = sorted(set(theirs) ^ set(ours)) or ["their order, or where the head sits"]
        raise ConfigError(
            f"{pretrained.source} has a head of {len(theirs)} classes, {data.train} has "
            f"{len(ours)}; they differ in {', '.join(map(shown, differing[:5]))}. Start a new "
            f"head: --variable-schema '(?!head_supervised)', or --zero-init-logits-layer"
        )


def checkpoint_facts(pretrained: Pretrained) -> dict[str, Any]:
    """Return what a result says of the network behind it."""
    run, _, step = pretrained.receipt.source.partition(" step ")
    return {
        "path": str(pretrained.source),
        "run": run,
        "step": int(step) if step.isdecimal() else None,
        "weights_sha256": pretrained.weights_sha256,
        "receipt": str(pretrained.receipt),
    }


def go_on(
    folder: RunFolder, config: FinetuneConfig, engine_config: EngineConfig, asked: Asked
) -> TuneStart:
    """Return the start of a run that goes on after its latest checkpoint, or begins again.

    Raises HarlError if it would not go on as it began, or its files are damaged.
    """
    if is_before_the_first(folder.checkpoints):
        return _begin_again(folder, config, engine_config, asked)
    checkpoint, run_id = open_latest(folder)
    record = checkpoint.record
    if record.finetune is None:
        raise CheckpointError(
            f"{folder.path} holds a pretraining: continue that with launch/pretrain.py --resume, "
            f"or fine-tune it with --ckpt {folder.path} and another --run"
        )
    if asked.ckpt is not None and not record.finetune.random:
        check_origin(asked.ckpt, record.data["pretrained"], folder.path)
    own = config, engine_config
    now = as_before(own, record.finetune, batch_may_fall=asked.batch_may_fall)
    (config, engine_config), pair = now, (record.finetune, recorded_engine(checkpoint))
    _check_network(asked, config.model, where=folder.path)
    changes = _changes(pair, now, asked, where=checkpoint.path)
    subset = folder.subset if folder.subset.exists() else config.subset
    found = open_data(asked.data, config, subset=subset, needs_val=asked.needs_val)
    _check_images(record.data, found.facts(), asked)
    notes = [*checkpoint.notes, f"weights: {checkpoint.receipt}"]
    if changes:
        notes.append(f"changed after step {record.step}: {change_text(changes)}")
    return TuneStart(
        folder=folder,
        config=config,
        engine_config=engine_config,
        run_id=run_id,
        data=found,
        facts={**found.facts(), **{key: record.data[key] for key in ("protocol", "pretrained")}},
        checkpoint=checkpoint,
        changes=changes,
        notes=notes,
    )


def _begin_again(
    folder: RunFolder, config: FinetuneConfig, engine_config: EngineConfig, asked: Asked
) -> TuneStart:
    """Return the start of a run that ended before its first checkpoint was complete.

    Raises HarlError if it did not, or would not begin as it did.
    """
    changes, known = None, read_provenance(folder.provenance)
    if folder.config.exists():
        before = load_finetuning(str(folder.config))
        known = check_unsaved(folder, checkpoint_epochs=before.log.checkpoint_epochs)
        own, fall = (config, engine_config), asked.batch_may_fall
        now = config, engine_config = as_before(own, before, batch_may_fall=fall)
        engine_before = first_engine(folder.engine) if folder.engine.exists() else engine_config
        changes = _changes((before, engine_before), now, asked, where=folder.path)
    ckpt, origin = asked.ckpt, known.data.get("pretrained")
    sources = [Path(start.init_from) for start in known.starts[:1] if start.init_from]
    if ckpt is None and not sources:
        raise CheckpointError(f"{folder.path} has no checkpoint yet: give --ckpt again")
    if ckpt is not None and not config.random and isinstance(origin, dict):
        check_origin(ckpt, origin, folder.path)
    named = str(known.data.get("protocol", asked.protocol))
    asked = replace(asked, protocol=named, ckpt=ckpt or sources[0])
    notes = [f"{folder.path} has no complete checkpoint yet: the run begins again"]
    start = first_start(folder, config, engine_config, asked, notes=notes)
    if "ids_sha256" in known.data:
        _check_images(known.data, start.facts, asked)
    return replace(start, changes=changes)


def _changes(
    before: tuple[FinetuneConfig, EngineConfig],
    now: tuple[FinetuneConfig, EngineConfig],
    asked: Asked,
    *,
    where: Path,
) -> Changes:
    """Return what differs from a run so far as the user allows it; see `allowed_changes`."""
    allowed, remedy = asked.allow_change, asked.remedy
    return allowed_changes(before, now, allowed=allowed, where=str(where), remedy=remedy)


def as_before(
    own: tuple[FinetuneConfig, EngineConfig], before: FinetuneConfig, *, batch_may_fall: bool
) -> tuple[FinetuneConfig, EngineConfig]:
    """Return both configurations with what a run's first start settled.

    batch_may_fall: see `Asked`.
    """
    config, engine_config = _filled(own[0], before), own[1]
    if batch_may_fall:
        return _with_batch(config, engine_config, before.train_batch_size)
    return config, engine_config


def check_origin(ckpt: Path, known: Mapping[str, Any], run: Path) -> None:
    """Raise ConfigError if a run began with other weights than ``ckpt`` has now."""
    now = load_pretrained(ckpt)
    if known.get("weights_sha256") not in (None, now.weights_sha256):
        raise ConfigError(
            f"--ckpt {ckpt} has other weights ({now.receipt}) than those that {run} began with "
            f"({known.get('receipt')}): give those, or move {run} away to begin again"
        )


def _filled(config: FinetuneConfig, before: FinetuneConfig) -> FinetuneConfig:
    """Return a configuration with what a run's first start took from its checkpoint."""
    keys = ("model", "image_size", "num_proj_layers")
    flags = {key: getattr(before, key) for key in keys if getattr(config, key) is None}
    if "model" in flags and flags["model"] is not None:
        flags["model"] = flags["model"].model_dump(mode="json")
    reading = config.data.model_dump(mode="json")
    reading |= {
        key: getattr(before.data, key) for key in ("mean", "std", "centre") if reading[key] is None
    }
    return change_finetuning(config, flags={**flags, "data": reading})


def _check_images(before: Mapping[str, Any], now: Mapping[str, Any], asked: Asked) -> None:
    """Raise ConfigError if a run began with other training images or classes."""
    for key, what in (
        ("beton_sha256", "container"),
        ("classes", "classes"),
        ("ids_sha256", "subset"),
    ):
        if before.get(key) != now[key]:
            usual = "Give the folder of the old one, or start a new run with --ckpt"
            raise ConfigError(
                f"--resume: the training set's {what} differs from what the run began with. "
                f"{asked.remedy or usual}"
            )


def network_of(start: TuneStart) -> Classifier:
    """Return the classifier that a start trains, on the CPU. Raises ConfigError."""
    pretrained, config = start.pretrained, start.config
    network = classifier_of(
        config,
        classes=len(start.data.manifest.classes),
        backbone=None if pretrained is None else pretrained.backbone,
        projector=None if pretrained is None else pretrained.projector,
    )
    # SimCLR sets the head to zero after loading it.
    if pretrained is not None and pretrained.head is not None and not config.zero_init_logits_layer:
        network.heads.load_state_dict(pretrained.head.state_dict())
    return network


def train_loader(start: TuneStart, machine: Machine) -> BetonLoader:
    """Return this rank's loader of the training images. Raises ConfigError or DataError."""
    config, batches = start.config, start.engine_config.batches
    view, reading = config.view(), config.data
    alone = batches.batch_micro == 1 and not (config.global_bn and batches.ranks > 1)
    if alone and config.fine_tune_after_block < 4:
        raise ConfigError(
            f"{start.engine_config.source}: {batches}: BatchNorm needs 2 or more images to tell "
            f"their spread. Use a larger --train-batch-size, or --fine-tune-after-block 4"
        )
    assert reading.mean is not None and reading.std is not None and config.model is not None
    colour = Colouring((view,), mean=reading.mean, std=reading.std)
    return BetonLoader(
        start.data.train,
        views=[ViewGeometry.of(view, cells=1)],
        batch_global=batches.batch_global,
        batch_micro=batches.batch_micro,
        rank=machine.rank,
        world=machine.ranks,
        seed=config.seed,
        workers=reading.workers,
        ranks_here=machine.ranks_here,
        batches_ahead=reading.batches_ahead,
        order=reading.order,
        damaged=reading.damaged,
        check=reading.check,
        skip_broken=reading.skip_broken,
        colour=colour if machine.device.type == "cpu" else None,
        channels=config.model.in_channels,
        ids=start.data.ids,
    )
