"""What is supervised training's own: the objects of a run, its schedule, the loss of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harl_fast.config import RunConfig
from harl_fast.data.loader import Batch, BetonLoader
from harl_fast.data.views.color_device import Photometric
from harl_fast.engine.checkpoint.format import Checkpoint
from harl_fast.engine.config import EngineConfig
from harl_fast.engine.loop import Stepping
from harl_fast.engine.machine import Machine, keep_freed_memory
from harl_fast.engine.networks import fresh_projector
from harl_fast.engine.resume import check_position
from harl_fast.engine.schedule import LrSchedule
from harl_fast.engine.snapshot import load_networks, load_rest
from harl_fast.engine.state import LoopState, on_engine
from harl_fast.errors import ConfigError
from harl_fast.finetuning import FinetuneConfig
from harl_fast.model.backbone import Backbone
from harl_fast.model.backbones import build_backbone
from harl_fast.model.classifier import Classifier
from harl_fast.model.heads import MLPHead
from harl_fast.model.seeding import own_numbers
from harl_fast.optim.build import make_optimizer
from harl_fast.optim.groups import param_groups
from harl_fast.rng import RANK, stream
from harl_fast.schedules import scaled_lr


@dataclass(frozen=True)
class TuneSchedule(LrSchedule):
    """Length and learning rate: a half cosine to 0, or a tenth at given epochs."""

    steps: int = 0
    """In place of the epochs; 0: by epochs."""
    falls: tuple[float, ...] = ()
    """Steps at which the rate falls to a tenth, in place of the cosine."""

    @classmethod
    def of(cls, config: FinetuneConfig, *, steps_per_epoch: int, batch_global: int) -> TuneSchedule:
        """Return the schedule that a configuration describes. Raises ConfigError."""
        epochs = config.train_epochs
        if config.train_steps:
            epochs = math.ceil(config.train_steps / steps_per_epoch)
            if config.warmup_epochs * steps_per_epoch >= config.train_steps:
                raise ConfigError(
                    f"warmup_epochs {config.warmup_epochs:g} of {steps_per_epoch:,} steps each "
                    f"leaves none of train_steps {config.train_steps:,}; shorten the warm-up or "
                    f"train longer"
                )
        rule = config.learning_rate_scaling
        return cls(
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            lr_peak=scaled_lr(config.learning_rate, batch_global=batch_global, rule=rule),
            warmup_steps=config.warmup_epochs * steps_per_epoch,
            steps=config.train_steps,
            falls=tuple(epoch * steps_per_epoch for epoch in config.lr_steps),
        )

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps or super().total

    def lr(self, step: int) -> float:
        """Return the learning rate of the step after ``step`` steps are done."""
        if not self.falls or step < self.warmup_steps:
            return super().lr(step)
        return self.lr_peak * 0.1 ** sum(step >= fall for fall in self.falls)


@dataclass(frozen=True)
class TuneState(LoopState):
    """Everything that one rank trains a classifier with."""

    schedule: TuneSchedule
    config: FinetuneConfig
    classifier: Classifier
    facts: dict[str, Any]
    """What a checkpoint's record says of the data, their classes and the pretraining."""

    @property
    def module(self) -> Classifier:
        """The classifier."""
        return self.classifier

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The classifier alone."""
        return {"online": self.classifier}

    @property
    def about(self) -> dict[str, Any]:
        """The configurations, and the data."""
        network = network_config(self.config)
        return {"config": network, "finetune": self.config, "data": self.facts}

    @property
    def subject(self) -> str:
        """Network, heads and optimizer."""
        config = self.config
        assert config.model is not None
        heads = len(config.head_lr_grid)
        return (
            f"{config.model.arch} trained from boundary {config.fine_tune_after_block}, "
            f"{heads} head{'s' * (heads > 1)} of {len(self.facts['classes'])} classes at "
            f"selector {config.ft_proj_selector}, {config.optimizer},"
        )

    @property
    def gentler(self) -> str:
        """What to set for a run that diverged."""
        return "a lower --learning-rate or longer --warmup-epochs"

    @property
    def prepare(self) -> Photometric:
        """What normalises uint8 images of evaluation; its `plain`."""
        data = self.config.data
        assert data.mean is not None and data.std is not None
        return Photometric((), mean=data.mean, std=data.std, seed=0).to(self.device)


def network_config(config: FinetuneConfig) -> RunConfig:
    """Return the network and its images as pretraining's sections, by which others load it."""
    data = config.data
    views = [{"size_px": config.image_size}] * 2
    tree = {"seed": config.seed, "model": config.model}
    found: RunConfig = RunConfig.model_validate(
        {**tree, "data": {"views": views, "mean": data.mean, "std": data.std}}
    )
    return found


def classifier_of(
    config: FinetuneConfig,
    *,
    classes: int,
    backbone: Backbone | None = None,
    projector: MLPHead | None = None,
) -> Classifier:
    """Return the classifier on the CPU; what is not given is freshly initialised.

    Raises ConfigError.
    """
    assert config.model is not None
    model = config.model
    with own_numbers(config.seed):
        backbone = build_backbone(model) if backbone is None else backbone
        if projector is None and config.num_proj_layers:
            projector = fresh_projector(model, backbone)
        return Classifier(
            backbone,
            classes=classes,
            projector=projector,
            selector=config.ft_proj_selector,
            boundary=config.fine_tune_after_block,
            heads=len(config.head_lr_grid),
            zero=config.zero_init_logits_layer,
        )


def build(
    config: FinetuneConfig,
    engine_config: EngineConfig,
    machine: Machine,
    *,
    loader: BetonLoader,
    classifier: Classifier,
    facts: dict[str, Any],
    checkpoint: Checkpoint | None = None,
) -> TuneState:
    """Return what one rank trains with; `deepspeed.start` must have been called.

    checkpoint: of this run, to go on from. Raises ConfigError or CheckpointError.
    """
    batch_global = engine_config.batches.batch_global
    schedule = TuneSchedule.of(config, steps_per_epoch=loader.steps, batch_global=batch_global)
    if checkpoint is not None:
        check_position(checkpoint, schedule, beton_sha256=loader.manifest.beton_sha256)
        load_networks({"online": classifier}, checkpoint)
    torch.manual_seed(int(stream(config.seed, 0, machine.rank, 0, RANK)))
    if machine.device.type == "cpu":
        keep_freed_memory()
    if config.global_bn and machine.ranks > 1:
        classifier.share_statistics()
    classifier.to(machine.device)
    optimizer = _optimizer(config, classifier)
    engine, scale = on_engine(classifier, optimizer, engine_config=engine_config, machine=machine)
    state = TuneState(
        engine_config=engine_config,
        machine=machine,
        loader=loader,
        photometric=_normalising(config, machine),
        optimizer=optimizer,
        engine=engine,
        scale=scale,
        schedule=schedule,
        config=config,
        classifier=classifier,
        facts=facts,
    )
    if checkpoint is not None:
        load_rest(state, checkpoint)
    return state


def _optimizer(config: FinetuneConfig, classifier: Classifier) -> Optimizer:
    rates = [config.head_lr_mult * factor for factor in config.head_lr_grid]
    groups = param_groups(
        classifier,
        weight_decay=config.weight_decay,
        heads={f"heads.{number}": rate for number, rate in enumerate(rates)},
    )
    return make_optimizer(
        "sgd" if config.optimizer == "momentum" else config.optimizer,
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.optimizer == "momentum" and config.momentum > 0.0,
        formula="simclr",
    )


def _normalising(config: FinetuneConfig, machine: Machine) -> Photometric | None:
    """Return what normalises views on a GPU; on a CPU the loader's threads do."""
    if machine.device.type == "cpu":
        return None
    data = config.data
    assert data.mean is not None and data.std is not None
    colour = Photometric((config.view(),), mean=data.mean, std=data.std, seed=config.seed)
    return colour.to(machine.device)


class TuneStepper(Stepping):
    """Images and labels in, the classifier moved."""

    def _loss(self, batch: Batch, *, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        (labels,) = self._transfer([batch.labels])
        (images,) = self._views(batch, epoch=epoch)
        loss, figures = self.state.engine(images, labels)
        return loss, figures
