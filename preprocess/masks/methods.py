"""Mask methods: one table, one function type, one rule from soft map to mask."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harl_fast.errors import ConfigError, DataError, HarlError, one_line
from harl_fast.files import sha256_file
from preprocess.masks.binary import Mask, binarize
from preprocess.masks.controls import center_map, full_map
from preprocess.masks.heuristic import heuristic_map
from preprocess.masks.spec import MethodSpec, Parameter, Parameters, keyword_parameters, parse

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]
Maps = Callable[[Sequence[Pixels]], list[Map]]
"""(H, W, 3) uint8 RGB images of any sizes to maps over them, each (S', S') float32 in [0, 1]."""

NONE, UNKNOWN, EXTERNAL = "none", "unknown", "external"
SUPERVISION = {
    NONE: "no labels",
    UNKNOWN: "supervision unknown",
    EXTERNAL: "externally supervised",
}
"""How much people told a method, from least to most, and how it is printed: nothing; nobody can
tell (mask files do not say how they were made); they drew masks for the training of its network."""


@dataclass(frozen=True)
class Method:
    """One way to tell foreground from background."""

    about: str
    parameters: Parameters = field(default_factory=dict)
    open: Callable[[MethodSpec], Maps] | None = None
    """None for methods that look a mask up, or change another method's: see `assign`."""
    supervision: str = NONE
    """A key of `SUPERVISION`; a method with a base has the base's."""
    fixed: bool = False
    """The map is the mask, cut at one half: a pattern that does not look at the image."""
    modules: tuple[str, ...] = ("binary",)
    """Modules of this package whose text, with what they import of it, is the method's version."""
    remedy: str = "give an existing file"
    """What to do when its file is missing."""


def _one_by_one(function: Callable[..., Map], spec: MethodSpec) -> Maps:
    keywords = dict(spec.parameters)
    return lambda images: [function(rgb, **keywords) for rgb in images]


def _open_selftrained(spec: MethodSpec) -> Maps:
    # Imported here: the network needs torch, and most conversions do not need the network.
    from preprocess.masks.network import load_network

    maps: Maps = load_network(Path(spec["file"])).maps
    return maps


def _open_onnx(spec: MethodSpec) -> Maps:
    from preprocess.masks.onnx import open_onnx

    return open_onnx(**dict(spec.parameters))


_FILE = Parameter(str)
_BASE = Parameter(MethodSpec, "heuristic")
_SEED = Parameter(int, 0, 0, 2**31)

METHODS: Mapping[str, Method] = {
    "heuristic": Method(
        "label-free: colour contrast to the border, refined",
        keyword_parameters(heuristic_map, high={"sigma": 32, "min_size": 4096, "rounds": 100}),
        functools.partial(_one_by_one, heuristic_map),
        modules=("heuristic", "binary"),
    ),
    "selftrained": Method(
        "a network that `make masks-train` trained on the images themselves",
        {"file": _FILE},
        _open_selftrained,
        modules=("network", "binary"),
        remedy="make it from your images: `make masks-train`",
    ),
    "onnx": Method(
        "any saliency network, such as u2netp.onnx",
        {
            "file": _FILE,
            "size": Parameter(int, 320, 16, 4096),
            "mean": Parameter(tuple, (0.485, 0.456, 0.406), -1000, 1000),
            "std": Parameter(tuple, (0.229, 0.224, 0.225), 1e-6, 1000),
            "scale": Parameter(str, "max", choices=("max", "255")),
            "output": Parameter(int, 0, 0, 1000),
        },
        _open_onnx,
        supervision=EXTERNAL,
        modules=("onnx", "binary"),
    ),
    "png": Method(
        "mask files DIR/train/<class>/<stem>.png, as HARL's authors publish them",
        {"folder": Parameter(str)},
        supervision=UNKNOWN,
        modules=("tree",),
    ),
    "cache": Method(
        "what `python -m preprocess.masks` made",
        {"folder": Parameter(str)},
        supervision=UNKNOWN,
        modules=("cache",),
    ),
    "center": Method(
        "control: a disc in the middle",
        {"sigma": Parameter(float, 0.3, 0.01, 10)},
        functools.partial(_one_by_one, center_map),
        fixed=True,
        modules=("controls",),
    ),
    "full": Method(
        "control: the whole image",
        {},
        functools.partial(_one_by_one, full_map),
        fixed=True,
        modules=("controls",),
    ),
    "shuffled": Method(
        "control: another image's mask", {"base": _BASE, "seed": _SEED}, modules=("controls",)
    ),
    "noise": Method(
        "control: flips each of grid x grid cells with probability p",
        {
            "p": Parameter(float, None, 0, 1),
            "base": _BASE,
            "seed": _SEED,
            "grid": Parameter(int, 7, 1, 128),
        },
        modules=("controls",),
    ),
}


@functools.cache
def parse_spec(text: str) -> MethodSpec:
    """Return the method that a text such as ``heuristic:rounds=2`` or ``noise:0.2`` names.

    Raises `ConfigError` for unknown names and keys, naming the nearest known one.
    """
    return parse(text, {name: method.parameters for name, method in METHODS.items()})


@functools.cache
def open_method(spec: MethodSpec) -> Maps:
    """Return a method's function, opened once a process.

    Raises `ConfigError` for methods that cannot tell a mask from the image alone, `DataError`
    when a file or package is missing.
    """
    method = METHODS[spec.name]
    if method.open is None:
        raise ConfigError(
            f"mask method {spec}: {method.about}; it does not make masks from images. It works in "
            f"`python -m preprocess.beton --mask-method`"
        )
    _checked_file(spec)
    return method.open(spec)


def to_mask(spec: MethodSpec, soft: Map) -> tuple[Mask, bool]:
    """Return the (S', S') mask of a method's map, and whether the stand-in had to serve."""
    if METHODS[spec.name].fixed:
        return soft >= 0.5, False
    return binarize(soft)


def find_mask(rgb: Pixels, method: str) -> tuple[Mask, bool]:
    """Return a method's (S', S') mask of an image, and whether the stand-in had to serve."""
    spec = parse_spec(method)
    (soft,) = open_method(spec)([rgb])
    return to_mask(spec, soft)


def try_method(spec: MethodSpec) -> None:
    """Raise `HarlError` unless a method opens and makes a map of a small picture.

    What fails on every image is thereby an error before the first one, not a set of fall-backs.
    """
    maps = open_method(spec)
    ramp = np.linspace(0, 255, 48 * 64 * 3).astype(np.uint8).reshape(48, 64, 3)
    try:
        check_maps(maps([ramp]), count=1)
    except HarlError:
        raise
    except Exception as error:
        # Whatever a network's library raises here it would raise on every image.
        raise DataError(
            f"mask method {spec} fails on a plain picture ({type(error).__name__}: {error}); "
            f"check its parameters"
        ) from error


def check_maps(maps: Sequence[Map], *, count: int) -> None:
    """Raise `ValueError` unless ``maps`` are ``count`` square maps with values in [0, 1]."""
    if len(maps) != count:
        raise ValueError(f"{len(maps)} maps of {count} images")
    for soft in maps:
        if soft.ndim != 2 or soft.shape[0] != soft.shape[1] or not soft.size:
            raise ValueError(f"a map of shape {soft.shape}, not square")
        if not (soft.min() >= 0 and soft.max() <= 1):  # also false for NaN
            raise ValueError("a map has values outside 0 to 1")


def method_facts(spec: MethodSpec) -> dict[str, Any]:
    """Return what manifests record: method, all parameters, supervision, version, SHA-256.

    Paths are given by their last part, the content of files by its checksum.
    """
    method = METHODS[spec.name]
    parameters: dict[str, Any] = {}
    for key, value in spec.parameters:
        if isinstance(value, MethodSpec):
            parameters[key] = method_facts(value)
        elif key in ("file", "folder"):
            parameters[key] = one_line(Path(value).name)
        else:
            parameters[key] = list(value) if isinstance(value, tuple) else value
    facts = {"method": spec.name, "parameters": parameters, "supervision": supervision(spec)}
    if "file" in parameters:
        facts["sha256"] = sha256_file(_checked_file(spec))
    return {**facts, "version": _version(method.modules)}


def supervision(spec: MethodSpec) -> str:
    """Return a method's key of `SUPERVISION`."""
    parameters = dict(spec.parameters)
    if "base" in parameters:
        return supervision(parameters["base"])
    return METHODS[spec.name].supervision


def _checked_file(spec: MethodSpec) -> Path:
    path = Path(dict(spec.parameters).get("file", "."))
    if "file" in dict(spec.parameters) and not path.is_file():
        raise DataError(f"mask method {spec}: there is no file {path}; {METHODS[spec.name].remedy}")
    return path


@functools.cache
def _version(modules: tuple[str, ...]) -> str:
    """Return 12 digits that change with the text of some modules and of what they import."""
    here, seen, waiting = Path(__file__).parent, set[str](), list(modules)
    while waiting:
        name = waiting.pop()
        path = here / f"{name}.py"
        if name not in seen and path.is_file():
            seen.add(name)
            text = path.read_text(encoding="utf-8")
            waiting += re.findall(r"from preprocess\.masks\.(\w+) import", text)
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update((here / f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]
