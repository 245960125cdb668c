"""Whose mask each image of a split gets, and where from: settled before the work begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from harl_fast.errors import ConfigError, DataError
from harl_fast.textfile import dump_yaml
from preprocess.masks.cache import SAMPLE, CacheReader, is_cache, open_cache
from preprocess.masks.controls import derangement
from preprocess.masks.registry import (
    SUPERVISION,
    find_method,
    method_facts,
    parse_spec,
    try_method,
)
from preprocess.masks.runner import Flip, MaskRequest
from preprocess.masks.spec import MethodSpec
from preprocess.sources import Split
from preprocess.sources.layout import HELD_OUT
from preprocess.sources.pages import PAGE

FALLBACK = parse_spec("heuristic")
"""Serves where another method fails on an image; where it fails itself, the centre ellipse does."""


LISTED = parse_spec("{png: list}")
"""What manifests say of mask files that a list of images names."""


@dataclass(frozen=True)
class MaskTree:
    """Where one split's mask files lie."""

    folder: Path
    """Holds ``<class>/<stem>.png``, or what else the images' names are."""
    splits: bool = True
    """Whether it stands for the first folder of the names, such as train/."""

    def path(self, name: str) -> Path:
        """Return the mask file of an image name such as ``train/<class>/<stem>.jpg``.

        That of the second page of ``<stem>.tif`` is ``<stem>#2.png``.
        """
        inner = PurePosixPath(*PurePosixPath(name).parts[self.splits :])
        page = PAGE.search(inner.suffix)
        mark = page[0] if page else ""
        return self.folder / inner.with_suffix("").with_name(f"{inner.stem}{mark}.png")


@dataclass(frozen=True)
class MaskList:
    """The masks of one split."""

    spec: MethodSpec
    """What was asked for."""
    methods: tuple[MethodSpec, ...]
    """Tried in turn on images without a mask file or cached mask."""
    split: Split
    partners: npt.NDArray[np.int64]
    """(N,): whose mask each image gets; mostly its own."""
    flips: tuple[tuple[MethodSpec, npt.NDArray[np.int64]], ...] = ()
    """Every ``noise`` and the positions that it is keyed by."""
    tree: MaskTree | None = None
    cache: CacheReader | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """method, parameters, supervision and version for the manifest."""

    @property
    def title(self) -> str:
        """What a summary calls these masks."""
        if self.cache is not None and self.spec.name == "cache":
            return f"{self.cache.info['spec']} out of {self.spec['folder']}"
        return str(self.spec)

    @property
    def has_files(self) -> bool:
        """Whether mask files come before methods."""
        return self.tree is not None or self.split.mask_files is not None

    def request(self, index: int) -> MaskRequest | None:
        """Return what a worker must know to get one image's mask; None: its own, by a method."""
        origin = int(self.partners[index])
        if origin == index and not (self.has_files or self.cache is not None or self.flips):
            return None  # paths take a while to make and to send
        name, image = self.split.names[origin], self.split.image(origin)
        flips = tuple(
            Flip(spec["p"], spec["grid"], spec["seed"], int(positions[index]))
            for spec, positions in self.flips
        )
        if self.split.mask_files is not None:
            file = self.split.mask_files[origin]
            lacking = "" if file else f"{name} has no mask in the list"
            return MaskRequest(name, image, file=file, lacking=lacking, flips=flips)
        if self.tree is not None:
            return MaskRequest(name, image, file=self.tree.path(name), flips=flips)
        if self.cache is not None:
            cached, lacking = self.cache.find(name)
            return MaskRequest(name, image, cached=cached, lacking=lacking, flips=flips)
        return MaskRequest(name, image, flips=flips)

    def final_facts(self, *, fallbacks: int) -> dict[str, Any]:
        """Return the facts for the manifest; what a fall-back brings in counts if it served."""
        if not fallbacks:
            return self.facts
        ranks = list(SUPERVISION)
        used = [self.facts["supervision"], *(method_facts(m)["supervision"] for m in self.methods)]
        return {**self.facts, "supervision": max(used, key=ranks.index)}


def open_masks(
    split: Split, classes: list[str], *, method: MethodSpec, given: Path | None
) -> MaskList:
    """Return the masks of a split; raises `HarlError` when a method cannot work at all.

    given: a tree of mask files or a cache, before ``method``, which then is the fall-back.
    """
    if split.mask_files is not None:
        return _listed(split, method, given)
    spec, fallbacks = method, [FALLBACK]
    if given is not None:
        if find_method(method.name).open is None:
            raise ConfigError(
                f"--mask-method {method} does not go with --masks {given}; name that as its base: "
                f"--mask-method {{{method.name}: {{base: {{png: {given}}}}}}}, or cache"
            )
        spec = parse_spec(dump_yaml({"cache" if is_cache(given) else "png": str(given)}, flow=True))
        fallbacks = [method, FALLBACK]
    leaf, partners, flips = _unwrapped(spec, len(split.names))
    tree, cache = None, None
    if leaf.name == "png":
        tree = _tree(Path(leaf["folder"]), split, classes)
    elif leaf.name == "cache":
        cache = open_cache(Path(leaf["folder"]), split)
    else:
        fallbacks.insert(0, leaf)
    methods = tuple(dict.fromkeys(fallbacks))
    for one in methods[:-1] or methods:  # `FALLBACK` alone is tried only if it is to work
        try_method(one)
    shown = spec
    if leaf.name in ("png", "cache") and tree is None and cache is None:
        # The published trees cover the training images only.
        shown = method if given is not None else FALLBACK
        partners, flips = np.arange(len(split.names)), ()
    facts = method_facts(shown) if cache is None else _cache_facts(shown, cache)
    if tree is not None or cache is not None:
        facts["fallback"] = method_facts(methods[0])
    return MaskList(shown, methods, split, partners, flips, tree, cache, facts)


def _listed(split: Split, method: MethodSpec, given: Path | None) -> MaskList:
    """Return the masks of a split that names their files, and by ``method`` where it does not."""
    if given is not None or find_method(method.name).open is None:
        other = f"--masks {given}" if given is not None else f"--mask-method {method}"
        raise ConfigError(
            f"{other} does not go with a list that names masks: leave it out, or the column mask"
        )
    methods = tuple(dict.fromkeys((method, FALLBACK)))
    try_method(methods[0])
    facts = {**method_facts(LISTED), "fallback": method_facts(methods[0])}
    return MaskList(LISTED, methods, split, np.arange(len(split.names)), facts=facts)


def _unwrapped(
    spec: MethodSpec, count: int
) -> tuple[MethodSpec, npt.NDArray[np.int64], tuple[tuple[MethodSpec, Any], ...]]:
    """Return the method below all controls, whose mask each image gets, and the flips."""
    partners, flips = np.arange(count), []
    while "base" in spec:
        if spec.name == "shuffled":
            partners = derangement(count, seed=spec["seed"])[partners]
        else:
            flips.append((spec, partners))
        spec = spec["base"]
    return spec, partners, tuple(flips)


def _tree(folder: Path, split: Split, classes: list[str]) -> MaskTree | None:
    tree = open_tree(folder, split.names[0], classes)
    some = split.names[:SAMPLE]
    png = next((name for name in split.names if name.endswith(".png")), "")
    if tree is not None and split.root is not None and png:
        file = split.root / png
        if tree.path(png).resolve() == file.resolve():
            raise DataError(
                f"the masks in {folder} lie among the images, so that they are taken for images, "
                f"too ({file}): move them to a folder of their own"
            )
    if tree is not None and not any(tree.path(name).is_file() for name in some):
        raise DataError(
            f"none of the first {len(some)} images ({some[0]}, ...) has a mask file: "
            f"for {some[0]} it should be {tree.path(some[0])}. Check the tree's names, or leave "
            f"--masks out"
        )
    return tree


def open_tree(tree: Path, first_name: str, classes: list[str]) -> MaskTree | None:
    """Return the masks of the split whose images are named like ``first_name``, or None.

    ``tree`` holds ``train/<class>/...``, or, as the published archives do, the classes of the
    training images directly. A tree without the training images' classes is an error.
    """
    if not tree.is_dir():
        raise DataError(f"the mask tree {tree} is no folder; expected {tree}/train/<class>/*.png")
    split = PurePosixPath(first_name).parts[0]
    if split not in ("train", *HELD_OUT):  # of a source without splits
        inside = tree / "train"
        return MaskTree(inside if inside.is_dir() else tree, splits=False)
    inside = tree / split
    if inside.is_dir():
        return MaskTree(inside)
    if split != "train":
        return None
    if any((tree / name).is_dir() for name in classes):
        return MaskTree(tree)
    raise DataError(
        f"the mask tree {tree} has neither train/ nor class folders of the images "
        f"({', '.join(classes[:3])}, ...); expected {tree}/train/<class>/*.png"
    )


def _cache_facts(spec: MethodSpec, cache: CacheReader) -> dict[str, Any]:
    """Return the facts of a method over a cache: those of the method that made the masks."""
    if spec.name == "cache":
        made = dict(cache.info["method"])
        return {**made, "cache": {"max_resolution": cache.info["max_resolution"]}}
    facts = method_facts(spec)
    facts["parameters"]["base"] = _cache_facts(spec["base"], cache)
    return {**facts, "supervision": facts["parameters"]["base"]["supervision"]}
