"""What `make evidence` compares: arms, one file each in experiments/, and the suites they form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from harl_fast.config import RunConfig, load_config
from harl_fast.demoset import IMAGES, SIDE_PX, set_name
from harl_fast.errors import ConfigError, nearest, shown
from harl_fast.kinds import Share
from harl_fast.section import Count, Section, validated
from harl_fast.textfile import read_yaml

Kind = Literal["photos", "composites"]
KINDS: tuple[Kind, ...] = ("photos", "composites")
STORED_PX = 160
"""Longest side of stored photos: enough for 64 px views, whose decoding takes less time then."""
NETWORK, DRAWN = "NETWORK", "DRAWN"
"""Stand in an arm's mask method for files that are made first: the weights of the mask network that
is trained on the photos, and the folder of the masks that the composites were drawn with."""


STAND_INS: dict[Kind, str] = {"photos": NETWORK, "composites": DRAWN}
"""The one that a suite's mask methods may name."""

Name = Annotated[str, Field(pattern=r"^[\w.-]*\w$")]
"""Of an arm: part of file names."""


class Arm(Section):
    """One thing that is tried: what it changes in its suite's recipe."""

    asks: str
    """What it is to show, in a sentence."""
    masks: str = "full"
    """Mask method of its containers, as ``--mask-method`` takes it; `NETWORK` and `DRAWN` in it."""
    trained: bool = True
    """False: random weights are judged."""
    overrides: tuple[str, ...] = ()
    """``section.key=value`` of the run's configuration."""


class Claim(Section):
    """A sentence that holds if one arm is above each of several others."""

    claim: str
    """The sentence."""
    arm: str
    over: Annotated[tuple[str, ...], Field(min_length=1)]
    """The arms that it is compared with."""
    by: str
    """Which read-out, see `evidence_scores.READ_OUTS`."""
    lower: bool = False
    """The arm is to be below the others."""


class Quick(Section):
    """The form that tries every part of a suite."""

    images: Count
    epochs: Count
    seeds: Count
    arms: tuple[str, ...]
    overrides: tuple[str, ...] = ()


class Suite(Section):
    """Arms that are compared with each other."""

    preset: str
    """Method of all arms."""
    overrides: tuple[str, ...] = ()
    """In it, before each arm's own."""
    epochs: Count | None = None
    """The preset's by default."""
    images: Count | None = None
    """In both splits together; by default all photos, and as many composites as the demo has."""
    seeds: Count
    """Trainings of each arm."""
    arms: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Files <suite>/<arm>.yaml, in the order of the tables."""
    baseline: str
    """The arm that the others are compared with."""
    probes: dict[str, str] = Field({})
    """Mask methods by which pictures are altered in the read-outs."""
    by_noise: dict[str, Share] = Field({})
    """Arms whose masks have a share of wrong cells, and that share."""
    claims: tuple[Claim, ...] = ()
    quick: Quick


class Suites(Section):
    """Content of experiments/suites.yaml."""

    photos: Suite
    composites: Suite


@dataclass(frozen=True, eq=False)
class Trial:
    """One arm under one seed, resolved: all that decides its training."""

    kind: Kind
    name: str
    seed: int
    arm: Arm
    suite: Suite
    images: int | None
    words: tuple[str, ...]
    """The overrides of the preset."""
    config: RunConfig

    @property
    def slug(self) -> str:
        """Name of its files."""
        return f"{self.kind}-{self.name}-{self.seed}"

    @property
    def methods(self) -> dict[str, str]:
        """The mask methods of the containers that it needs, by the place that names each."""
        arm, suite = f"experiments/{self.kind}/{self.name}.yaml", f"suites.yaml: {self.kind}"
        own = {f"{arm}: masks": self.arm.masks} if self.arm.trained else {}
        probes = self.suite.probes.items()
        return own | {f"experiments/{suite}: probes: {name}": masks for name, masks in probes}

    @property
    def source(self) -> str:
        """What its images are, as far as the plan says."""
        if self.kind == "composites":
            return set_name(self.images or 0, SIDE_PX, seed=0)
        return f"{self.images or 'all'} photos of {STORED_PX} px"

    def facts(self, precision: str) -> dict[str, Any]:
        """Return what decides the trained network, as JSON values."""
        whole, trained = self.config.model_dump(mode="json"), self.arm.trained
        # Random weights know nothing of schedules, masks and precision: none makes them others.
        fresh = {"seed": self.seed, "model": whole["model"], "views": whole["data"]["views"]}
        return {
            "arm": f"{self.kind}/{self.name}",
            "images": self.source,
            "masks": self.arm.masks if trained else "",
            "precision": precision if trained else "",
            "config": whole if trained else fresh,
        }


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    suites: dict[Kind, Suite]
    trials: list[Trial]
    """In the order in which they run: all arms under the first seed, then under the next."""

    def of(self, kind: Kind) -> list[Trial]:
        """Return a suite's trials."""
        return [trial for trial in self.trials if trial.kind == kind]


def load_plan(
    folder: Path, *, quick: bool = False, seeds: int | None = None, epochs: int | None = None
) -> Plan:
    """Return all trials of the suites in a folder such as experiments/.

    quick: in their quick form. seeds, epochs: instead of the suites' own. Raises ConfigError, also
    for an arm that has no file and a claim about an arm that is not run.
    """
    path = folder / "suites.yaml"
    suites: Suites = validated(Suites, read_yaml(path), where=str(path))
    every: dict[Kind, Suite] = {kind: getattr(suites, kind) for kind in KINDS}
    found = []
    for kind, suite in every.items():
        arms = {name: _arm(folder, kind, name) for name in suite.arms}
        _check_names(suite, where=f"{path}: {kind}")
        found += [
            _trial(kind, name, arms[name], suite, quick=quick, seed=seed, epochs=epochs)
            for seed in range(seeds or (suite.quick.seeds if quick else suite.seeds))
            for name in (suite.quick.arms if quick else suite.arms)
        ]
    return Plan(every, sorted(found, key=lambda trial: trial.seed))


def chosen(trials: Sequence[Trial], only: Sequence[str]) -> list[Trial]:
    """Return the trials of suites and arms by name, such as photos and composites/exact."""
    known = {trial.kind for trial in trials} | {f"{t.kind}/{t.name}" for t in trials}
    for name in only:
        if name not in known:
            meant = nearest(name, known) or f" ({', '.join(sorted(known))})"
            raise ConfigError(f"--only {shown(name)}: there is no such suite or arm{meant}")
    names = {*only} or known
    return [t for t in trials if {t.kind, f"{t.kind}/{t.name}"} & names]


def _arm(folder: Path, kind: Kind, name: str) -> Arm:
    path = folder / kind / f"{name}.yaml"
    if not path.is_file():
        there = nearest(name, (each.stem for each in path.parent.glob("*.yaml")))
        raise ConfigError(
            f"{folder / 'suites.yaml'}: {kind}: arm {shown(name)} has no {path}{there}"
        )
    arm: Arm = validated(Arm, read_yaml(path), where=str(path))
    return arm


def _check_names(suite: Suite, *, where: str) -> None:
    for names in (suite.arms, suite.quick.arms):
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"{where}: the arm {twice[0]} stands twice; keep one")
    claimed = [name for claim in suite.claims for name in (claim.arm, *claim.over)]
    for name in (suite.baseline, *suite.quick.arms, *suite.by_noise, *claimed):
        if name not in suite.arms:
            meant = nearest(name, suite.arms)
            raise ConfigError(f"{where}: {shown(name)} is none of its arms{meant}")


def _trial(
    kind: Kind, name: str, arm: Arm, suite: Suite, *, quick: bool, seed: int, epochs: int | None
) -> Trial:
    length = epochs or (suite.quick.epochs if quick else suite.epochs)
    words = (
        *suite.overrides,
        *(suite.quick.overrides if quick else ()),
        *arm.overrides,
        *([f"epochs={length}"] if length else []),
        f"seed={seed}",
    )
    try:
        config = load_config(suite.preset, overrides=words)
    except ConfigError as error:
        raise ConfigError(f"experiments: {kind}/{name}: {error}") from error
    images = suite.quick.images if quick else suite.images
    if kind == "composites":
        images = images or IMAGES
    trial = Trial(kind, name, seed, arm, suite, images, words, config)
    for place, method in trial.methods.items():
        for word in {*STAND_INS.values()} - {STAND_INS[kind]}:
            if word in method:
                raise ConfigError(
                    f"{place}: {shown(method)} names {word}, which {kind} do not have; they have "
                    f"{STAND_INS[kind]}"
                )
    return trial
