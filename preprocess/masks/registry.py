"""Mask methods: one table, one interface, one rule from soft map to mask.

A method is a plain function from pixels, (H, W, 3) uint8 RGB, to a soft map over the whole image,
(S, S) float32 in [0, 1]; its keyword-only arguments are its parameters. A method that is better
given several images at once, as a network is, is a function of the parameters that returns one
from a list of images to a list of maps.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from harl_fast.errors import ConfigError, DataError, HarlError, nearest, one_line, shown
from harl_fast.files import sha256_file
from harl_fast.section import Section
from preprocess.images.arrays import Map, Mask, Pixels
from preprocess.masks.controls import center_map, full_map
from preprocess.masks.enlarged import enlarged_map
from preprocess.masks.heuristic.binary import binarize
from preprocess.masks.heuristic.method import heuristic_map
from preprocess.masks.onnx import open_onnx
from preprocess.masks.spec import BASE, NUMBERS, MethodSpec, NoParameters, parameters_of, parse

MapFunction = Callable[[Sequence[Pixels]], list[Map]]
"""(H, W, 3) uint8 RGB images of any sizes to maps over them, each (S, S) float32 in [0, 1]."""

CHUNK = 16
"""Images that methods are given at a time, everywhere: a network's rounding may depend on the
images beside one. About 0.1 s of work for a worker, 2 MB of result."""
INPUT_PX = 512
"""Masks are made from the stored image (upright, shrunk to max_resolution), shrunk to this longest
side: it bounds the memory of a chunk, and no method looks at more."""

RENAMED = {"cache": "png"}
"""What methods of older versions are called now."""
NONE, UNKNOWN, EXTERNAL = "none", "unknown", "external"
SUPERVISION = {
    NONE: "no labels",
    UNKNOWN: "supervision unknown",
    EXTERNAL: "externally supervised",
}
"""Levels of supervision, from least to most, and how each is printed: none; unknown (mask files do
not say how they were made, nor runs whether labels taught them); a network trained on masks that
people drew."""


@dataclass(frozen=True)
class MaskMethod:
    """One way to tell foreground from background; see `of_one_image` and `of_many_images`."""

    about: str
    """One phrase for ``--help``."""
    parameters: type[Section] = NoParameters
    open: Callable[..., MapFunction] | None = None
    """Takes the parameters as keywords. None for methods that look a mask up, or change another
    method's: see `preprocess.masks.sources`."""
    supervision: str = NONE
    """A key of `SUPERVISION`; a method with a base has the base's."""
    fixed: bool = False
    """The map is the mask, cut at one half: a pattern that does not look at the image."""
    module: str = __name__
    """The module whose text, with what it imports of this package, is the method's version."""
    remedy: str = "give an existing file"
    """What to do when its file is missing."""
    weights: Callable[..., str] | None = None
    """Takes the parameters as keywords: the SHA-256 of a network that is no single file."""


def of_one_image(function: Callable[..., Map], *, about: str, **facts: Any) -> MaskMethod:
    """Return the method of a function ``(rgb, *, parameters) -> map``.

    facts: further fields of `MaskMethod`.
    """

    def opened(**parameters: Any) -> MapFunction:
        return lambda images: [function(rgb, **parameters) for rgb in images]

    facts = {"module": function.__module__, **facts}
    return MaskMethod(about, parameters_of(function), opened, **facts)


def of_many_images(opener: Callable[..., MapFunction], *, about: str, **facts: Any) -> MaskMethod:
    """Return the method of a function ``(*, parameters) -> (images -> maps)``, called once."""
    facts = {"module": opener.__module__, **facts}
    return MaskMethod(about, parameters_of(opener), opener, **facts)


def _open_selftrained(*, file: str) -> MapFunction:
    # Imported here: the network needs torch, and most conversions do not need the network.
    from preprocess.masks.selftrained.network import load_network

    return load_network(Path(file)).maps


_Counts = Annotated[
    tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=1, max_length=8), NUMBERS
]


def _open_features(
    *,
    run: str,
    level: Annotated[int, Field(ge=1, le=4)] = 3,
    size: Annotated[int, Field(ge=32, le=1024)] = 256,
    clusters: _Counts = (3, 6, 12),
) -> MapFunction:
    from preprocess.masks.features import open_features

    return open_features(run, level=level, size=size, clusters=clusters)


def _weights_of(*, run: str, **_: Any) -> str:
    from preprocess.masks.features import opened

    return opened(run).weights_sha256


class _Folder(Section):
    folder: str


_Seed = Annotated[int, Field(ge=0, le=2**31)]


class _Shuffled(Section):
    base: MethodSpec = BASE
    seed: _Seed = 0


class _Noise(Section):
    p: Annotated[float, Field(ge=0, le=1)]
    base: MethodSpec = BASE
    seed: _Seed = 0
    grid: Annotated[int, Field(ge=1, le=128)] = 7


MASK_METHODS: dict[str, MaskMethod] = {
    "heuristic": of_one_image(
        heuristic_map, about="label-free: colour contrast to the border, refined"
    ),
    "enlarged": of_one_image(
        enlarged_map, about="heuristic on the image at 4 times its size: for sides below 64 px"
    ),
    "selftrained": of_many_images(
        _open_selftrained,
        about="a network that `make masks-train` trained on the images themselves",
        module="preprocess.masks.selftrained.network",
        remedy="make it from your images: `make masks-train`",
    ),
    "features": of_many_images(
        _open_features,
        about="what the features of a run's encoder set apart from the image's border",
        supervision=UNKNOWN,
        module="preprocess.masks.features",
        weights=_weights_of,
    ),
    "onnx": of_many_images(
        open_onnx, about="any saliency network, such as u2netp.onnx", supervision=EXTERNAL
    ),
    "png": MaskMethod(
        "mask files DIR/train/<class>/<stem>.png, as HARL's authors publish them or `python -m "
        "preprocess.masks` makes them",
        _Folder,
        supervision=UNKNOWN,
        module="preprocess.masks.sources",
    ),
    "center": of_one_image(center_map, about="control: a disc in the middle", fixed=True),
    "full": of_one_image(full_map, about="control: the whole image", fixed=True),
    "shuffled": MaskMethod(
        "control: another image's mask", _Shuffled, module="preprocess.masks.controls"
    ),
    "noise": MaskMethod(
        "control: flips each of grid x grid cells with probability p",
        _Noise,
        module="preprocess.masks.controls",
    ),
}


def find_method(name: str) -> MaskMethod:
    """Return a method of the table, or the one that ``package.module.name`` leads to.

    The latter is a `MaskMethod`, or a function as `of_one_image` takes it, in any module that can
    be imported. A function's supervision is unknown. Raises `ConfigError`.
    """
    if name in MASK_METHODS:
        return MASK_METHODS[name]
    return _imported(name)


@functools.cache
def _imported(name: str) -> MaskMethod:
    module, _, attribute = name.rpartition(".")
    if name in RENAMED:
        raise ConfigError(
            f"mask methods: {name} is called {RENAMED[name]} now: write {{{RENAMED[name]}: DIR}}"
        )
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        raise ConfigError(
            f"mask methods: there is no {shown(name)}{nearest(name, MASK_METHODS)} (known: "
            f"{', '.join(MASK_METHODS)}; others by package.module.name)"
        )
    try:
        with _staying():
            found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, MaskMethod):
            return found
        return of_one_image(found, about=name, supervision=UNKNOWN)
    # A module of the user's own can raise anything while it is imported.
    except Exception as error:
        raise ConfigError(
            f"mask method {shown(name)} cannot be imported ({type(error).__name__}: {error}); it "
            f"leads to no function of a module that Python finds, or that module fails"
        ) from error


@functools.cache
def parse_spec(text: str) -> MethodSpec:
    """Return the method that ``heuristic``, ``{heuristic: {rounds: 2}}`` or ``{noise: 0.2}`` names.

    Raises `ConfigError` for unknown names and keys, naming the nearest known one.
    """
    return parse(text, lambda name: find_method(name).parameters)


@functools.cache
def open_method(spec: MethodSpec) -> MapFunction:
    """Return a method's function, opened once per process.

    Raises `ConfigError` for methods that cannot tell a mask from the image alone, `DataError`
    when a file or package is missing.
    """
    method = find_method(spec.name)
    if method.open is None:
        raise ConfigError(
            f"mask method {spec}: {method.about}; it does not make masks from images. It works in "
            f"`python -m preprocess.beton --mask-method`"
        )
    if spec.file is not None:
        _checked_file(spec, spec.file)
    with _staying():
        maps = method.open(**dict(spec.parameters))

    def find(images: Sequence[Pixels]) -> list[Map]:
        with _staying():
            return maps(images)

    return find


@contextlib.contextmanager
def _staying() -> Iterator[None]:
    """Raise a `RuntimeError` instead of `SystemExit`.

    A function of the user's own must not end this program with an exit code of its choice.
    """
    try:
        yield
    except SystemExit as end:
        raise RuntimeError(f"it calls sys.exit({end})") from end


def to_mask(spec: MethodSpec, soft: Map) -> tuple[Mask, bool]:
    """Return the (S, S) mask of a method's map, and whether the stand-in had to serve."""
    if find_method(spec.name).fixed:
        return soft >= 0.5, False
    return binarize(soft)


def find_mask(rgb: Pixels, method: str) -> tuple[Mask, bool]:
    """Return a method's (S, S) mask of an image, and whether the stand-in had to serve."""
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
    parameters: dict[str, Any] = {}
    for key, value in spec.parameters:
        if isinstance(value, MethodSpec):
            parameters[key] = method_facts(value)
        elif key in ("file", "folder", "run") and isinstance(value, str):
            parameters[key] = one_line(Path(value).name)
        else:
            parameters[key] = list(value) if isinstance(value, tuple) else value
    facts = {"method": spec.name, "parameters": parameters, "supervision": supervision(spec)}
    method = find_method(spec.name)
    if method.weights is not None:
        facts["sha256"] = method.weights(**dict(spec.parameters))
    elif spec.file is not None:
        facts["sha256"] = sha256_file(_checked_file(spec, spec.file))
    return {**facts, "version": _version(method.module)}


def supervision(spec: MethodSpec) -> str:
    """Return a method's key of `SUPERVISION`."""
    return supervision(spec.base) if spec.base is not None else find_method(spec.name).supervision


def most_supervised(levels: Iterable[str]) -> str:
    """Return the last of some keys of `SUPERVISION` in its order."""
    return max(levels, key=list(SUPERVISION).index)


def _checked_file(spec: MethodSpec, file: str) -> Path:
    path = Path(file)
    if not path.is_file():
        raise DataError(
            f"mask method {spec}: there is no file {path}; {find_method(spec.name).remedy}"
        )
    return path


@functools.cache
def _version(module: str) -> str:
    """Return 12 digits that change with the text of a module and of the mask modules it imports."""
    texts: dict[str, bytes] = {}
    waiting = [module, "preprocess.masks.heuristic.binary"]
    while waiting:
        name = waiting.pop()
        if name in texts:
            continue
        found = importlib.util.find_spec(name)
        texts[name] = Path(found.origin).read_bytes() if found and found.origin else b""
        waiting += re.findall(r"from (preprocess\.masks\.[\w.]+) import", texts[name].decode())
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(texts[name])
    return digest.hexdigest()[:12]
