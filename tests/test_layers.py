"""The import staircase: lower steps never import higher ones, siblings never each other.

All imports count, those inside functions and under TYPE_CHECKING too. Modules of one step may use
each other, but in no circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("harl_fast", "preprocess", "launch")

LEVELS = {
    "harl_fast": 0,  # the package itself: its version
    "harl_fast.rng": 0,
    "harl_fast.schedules": 0,
    "harl_fast.config": 0,
    "harl_fast.finetuning": 0,
    "harl_fast.section": 0,
    "harl_fast.demoset": 0,
    "harl_fast.errors": 0,
    "harl_fast.files": 0,
    "harl_fast.host": 0,
    "harl_fast.options": 0,
    "harl_fast.textfile": 0,
    "harl_fast.tensorfile": 0,
    "harl_fast.jit": 0,
    "harl_fast.kinds": 0,
    "harl_fast.supervision": 0,
    "harl_fast.lock": 0,
    "harl_fast.runfiles": 0,
    "harl_fast.steps": 0,
    "harl_fast.program": 0,
    "harl_fast.results": 0,
    "harl_fast.drawing": 0,
    "harl_fast.side": 0,
    "harl_fast.provenance": 0,
    "harl_fast.pool": 0,
    "harl_fast.collectives": 1,
    "harl_fast.data": 1,
    "harl_fast.model": 1,
    "harl_fast.optim": 1,
    "harl_fast.eval": 2,
    "harl_fast.engine": 3,
    "harl_fast.viz": 4,  # draws what the engine's loader receives
    "harl_fast.tools": 4,  # programs that come after training
    "harl_fast.doctor": 5,
    "harl_fast.plan": 5,
    "preprocess": 5,
    "preprocess.preview": 6,  # a thin program over harl_fast.viz and preprocess.masks
    "launch": 5,
}
FLIGHTS = {
    "harl_fast.data": ("container", "views", ""),
    "harl_fast.engine": ("checkpoint", "monitor", ""),
    "preprocess": ("images", "demo", "sources", "masks", ""),
    "preprocess.masks": ("heuristic", "selftrained", ""),
}
"""The staircase within a package, its lowest folder first; "" stands for its own modules."""
FREE_SIBLINGS = {0}
"""On level 0 modules may use each other."""
PREPROCESS_MAY_USE = {"harl_fast.data"} | {name for name, level in LEVELS.items() if level == 0}
MAY_USE_MORE = {
    "preprocess.masks.features": {"harl_fast.engine", "harl_fast.model", *PREPROCESS_MAY_USE}
}
"""It makes masks by the features of a run, which it opens as all programs do."""
HEAVY = {"torch", "torchvision", "ffcv", "deepspeed", "cv2"}
DEEPSPEED_OWNER = "harl_fast.engine.deepspeed"


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield the absolute dotted name of everything that a module's text imports."""
    base = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) - node.level + 1] if node.level else []
            target = ".".join([*start, *(node.module.split(".") if node.module else [])])
            yield from (f"{target}.{alias.name}" for alias in node.names)


def step(name: str) -> str | None:
    """Return the entry of `LEVELS` that a dotted name belongs to, or None for other libraries."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        candidate = ".".join(parts[:length])
        # A package's entry stands for all of it, "harl_fast" for its own names only.
        whole = candidate != "harl_fast" or name in ("harl_fast", "harl_fast.__version__")
        if candidate in LEVELS and whole:
            return candidate
    return None


def flight(name: str, package: str) -> int | None:
    """Return on which step of a package's own staircase a dotted name lies; None if elsewhere."""
    if not f"{name}.".startswith(f"{package}."):
        return None
    first = name.removeprefix(package).lstrip(".").partition(".")[0]
    steps = FLIGHTS[package]
    return steps.index(first if first in steps else "")


def _up_within(module: str, target: str) -> Iterator[str]:
    """Yield what an import breaks of the staircase within a package."""
    for package, steps in FLIGHTS.items():
        own, other = flight(module, package), flight(target, package)
        if own is not None and other is not None and other > own:
            above = f"{package}.{steps[other]}".rstrip(".")
            yield f"{module} imports {target}: {above} stands above {package}.{steps[own]}"


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return what a module's imports break."""
    own = step(module)
    if own is None:
        return [f"{module} has no level: add it to LEVELS"]
    found = []
    for target in imports(source, module, is_package=is_package):
        top, other = target.split(".")[0], step(target)
        if top in HEAVY and LEVELS[own] == 0:
            found.append(f"{module} is on level 0 and imports {target}")
        if top == "deepspeed" and module != DEEPSPEED_OWNER:
            found.append(f"{module} imports {target}; only {DEEPSPEED_OWNER} may")
        if top in PACKAGES and other is None:
            found.append(f"{module} imports {target}, which has no level: add it to LEVELS")
        elif other is not None and other != own:
            found.extend(_against_the_stairs(module, own, target, other))
        else:
            found.extend(_up_within(module, target))
    return found


def _against_the_stairs(module: str, own: str, target: str, other: str) -> Iterator[str]:
    if LEVELS[other] > LEVELS[own]:
        yield f"{module} (level {LEVELS[own]}) imports {target} (level {LEVELS[other]})"
    elif LEVELS[other] == LEVELS[own] and LEVELS[own] not in FREE_SIBLINGS:
        yield f"{module} imports its sibling {target}"
    elif own == "preprocess" and other not in MAY_USE_MORE.get(module, PREPROCESS_MAY_USE):
        yield f"{module} imports {target}; preprocess may use level 0 and harl_fast.data only"


def module_of(name: str, modules: Iterable[str]) -> str | None:
    """Return the module that a dotted name lies in, itself or what it is imported from."""
    return max((m for m in modules if f"{name}.".startswith(f"{m}.")), key=len, default=None)


def circle(sources: Mapping[str, tuple[str, bool]]) -> list[str]:
    """Return modules that import each other in a circle, from one back to it, or none.

    sources: of each module its text, and whether it is a package.
    """
    graph = {
        module: {module_of(name, sources) for name in imports(source, module, is_package=package)}
        - {module, None}
        for module, (source, package) in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_goes_up_the_stairs(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    package = path.name == "__init__.py"
    assert violations(source, module_name(path, ROOT), is_package=package) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = {
        module_name(path, ROOT): (path.read_text(encoding="utf-8"), path.name == "__init__.py")
        for path in FILES
    }
    assert circle(sources) == []


@pytest.mark.parametrize(
    ("package", "first", "second"),
    [
        ("", "import p.b", "import p.a"),
        ("", "from p import (c, b)", "from .a import x"),
        ("", "from . import b", "def f():\n    from p import a"),
        ("from .b import x", "from p import x", "import p.a"),
    ],
)
def test_a_circle_is_found(package: str, first: str, second: str) -> None:
    others = {"p.a": (first, False), "p.b": (second, False), "p.c": ("import os", False)}
    found = circle({"p": (package, True), **others})
    assert {"p.a", "p.b"} <= set(found) and "p.c" not in found
    assert circle({"p": ("", True), **others, "p.b": ("import p.c", False)}) == []


def test_every_folder_has_its_step() -> None:
    folders = {path.parent for path in FILES if path.parent not in {ROOT / p for p in PACKAGES}}
    own = {module_name(folder / "__init__.py", ROOT) for folder in folders}
    named = {f"{package}.{step}" for package, steps in FLIGHTS.items() for step in steps if step}
    assert own == named | {name for name in LEVELS if (ROOT / name.replace(".", "/")).is_dir()} - {
        *PACKAGES
    }


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("harl_fast.rng", "import torch"),
        ("harl_fast.config", "from harl_fast.data import loader"),
        ("harl_fast.data.loader", "def f():\n    from harl_fast.model.pooling import masked_mean"),
        ("harl_fast.data.loader", "from ..model import pooling"),
        ("harl_fast.data.loader", "from .. import model"),
        ("harl_fast.model.loss", "import harl_fast.optim.lars"),
        ("harl_fast.model.loss", "import harl_fast.eval"),
        ("harl_fast.eval.knn", "from harl_fast.engine.networks import load_encoder"),
        ("harl_fast.engine.trainer", "import deepspeed"),
        ("harl_fast.engine.trainer", "from deepspeed.accelerator import get_accelerator"),
        ("harl_fast.engine.trainer", "from harl_fast.viz import contact_sheet"),
        ("harl_fast.engine.trainer", "from launch import pretrain"),
        ("harl_fast.engine.networks", "from harl_fast.tools.export import export_encoder"),
        ("harl_fast.tools.export", "from harl_fast.viz import contact_sheet"),
        ("harl_fast.viz", "from launch import lineval"),
        ("preprocess.beton", "from harl_fast.model.backbones import build_backbone"),
        ("preprocess.beton", "from harl_fast.eval import knn"),
        ("preprocess.masks.registry", "from harl_fast.engine.networks import load_pretrained"),
        ("preprocess.masks.features", "from harl_fast.viz import contact_sheet"),
        ("preprocess.beton", "from harl_fast.doctor import probe"),
        ("harl_fast.data.container.fields", "from harl_fast.data.views import sample"),
        ("harl_fast.data.views.sample", "from ..loader import BetonLoader"),
        ("harl_fast.engine.checkpoint.format", "from harl_fast.engine.networks import x"),
        ("harl_fast.engine.monitor.probe", "from harl_fast.engine import deepspeed"),
        ("harl_fast.engine.checkpoint.format", "from harl_fast.engine.monitor import alarms"),
        ("preprocess.images.decode", "from preprocess.sources.base import Split"),
        ("preprocess.sources.base", "from preprocess.convert import convert"),
        ("preprocess.masks.heuristic.method", "from preprocess.masks import registry"),
        ("harl_fast.unheard_of", ""),
        ("harl_fast.eval.knn", "from harl_fast.unheard_of import x"),
    ],
)
def test_a_step_up_or_sideways_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("harl_fast.config", "from harl_fast.errors import ConfigError\nimport yaml"),
        ("harl_fast.data.loader", "import torch\nfrom harl_fast.data.decode import Decoder"),
        ("harl_fast.data.loader", "from .decode import Decoder\nfrom harl_fast import rng"),
        ("harl_fast.eval.protocol", "from harl_fast.data.loader import EvalLoader"),
        (
            "harl_fast.engine.checkpoint.format",
            "import harl_fast\nfrom harl_fast import __version__",
        ),
        ("harl_fast.engine.deepspeed", "import deepspeed"),
        ("harl_fast.engine.snapshot", "from harl_fast.engine.checkpoint.format import Checkpoint"),
        ("preprocess.masks.runner", "from preprocess.sources import Split"),
        ("harl_fast.tools.card", "from harl_fast.eval.results import read_result"),
        ("preprocess.beton", "from harl_fast.data.container.fields import BitMaskField"),
        ("preprocess.masks.features", "from harl_fast.engine.networks import load_pretrained"),
        ("launch.lineval", "from harl_fast.engine.networks import load_encoder"),
    ],
)
def test_a_step_down_is_allowed(module: str, source: str) -> None:
    assert violations(source, module) == []
