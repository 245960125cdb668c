"""Whose mask each image of a split gets, and where from: settled before the work begins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harl_fast.data.order import spread
from harl_fast.errors import ConfigError, DataError, one_line
from harl_fast.textfile import dump_yaml
from preprocess.images.reading import UnusableImageError
from preprocess.masks.controls import derangement
from preprocess.masks.maskfile import find_made
from preprocess.masks.registry import (
    find_method,
    method_facts,
    most_supervised,
    parse_spec,
    try_method,
)
from preprocess.masks.runner import Flip, MaskRequest
from preprocess.masks.spec import MethodSpec
from preprocess.masks.tree import INFO, MaskTree, check_whole, contested, read_info, unused
from preprocess.sources import Split
from preprocess.sources.layout import HELD_OUT, ONE_FORM, other_form

FALLBACK = parse_spec("heuristic")
"""Serves where another method fails on an image; where it fails itself, the centre ellipse does."""
SAMPLE = 200
"""A tree of which none of this many masks is there, or fits, is taken for the wrong one."""
LISTED = parse_spec("{png: list}")
"""What manifests say of mask files that a list of images names."""


@dataclass(frozen=True)
class MaskList:
    """The masks of one split."""

    spec: MethodSpec
    """What was asked for."""
    methods: tuple[MethodSpec, ...]
    """Tried in turn on images without a mask file."""
    split: Split
    partners: npt.NDArray[np.int64]
    """(N,): whose mask each image gets; mostly its own."""
    flips: tuple[tuple[MethodSpec, npt.NDArray[np.int64]], ...] = ()
    """Every ``noise`` and the positions that it is keyed by."""
    tree: MaskTree | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """method, parameters, supervision and version for the manifest."""

    @property
    def title(self) -> str:
        """What a summary calls these masks."""
        if self.made is not None and self.spec.name == "png":
            return f"{self.made['spec']} out of {self.spec['folder']}"
        return str(self.spec)

    @property
    def made(self) -> dict[str, Any] | None:
        """How `make masks` made the mask files, see `describe`; None of others."""
        return None if self.tree is None else self.tree.info

    @property
    def has_files(self) -> bool:
        """Whether mask files come before methods."""
        return self.tree is not None or self.split.mask_files is not None

    def request(self, index: int) -> MaskRequest | None:
        """Return what a worker must know to get one image's mask; None: its own, by a method."""
        origin = int(self.partners[index])
        if origin == index and not (self.has_files or self.flips):
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
            file, key = self.tree.path(name), self.tree.key
            return MaskRequest(name, image, file=file, key=key, flips=flips)
        return MaskRequest(name, image, flips=flips)

    def final_facts(self, *, fallbacks: int) -> dict[str, Any]:
        """Return the facts for the manifest; what a fall-back brings in counts if it served."""
        if not fallbacks:
            return self.facts
        used = [self.facts["supervision"], *(method_facts(m)["supervision"] for m in self.methods)]
        return {**self.facts, "supervision": most_supervised(used)}


def open_masks(
    split: Split,
    classes: list[str],
    *,
    method: MethodSpec,
    given: Path | None,
    names: Sequence[str] = (),
) -> MaskList:
    """Return the masks of a split; raises `HarlError` when a method cannot work at all.

    given: a tree of mask files, before ``method``, which then is the fall-back. names: of all
    splits' images.
    """
    if split.mask_files is not None:
        return _listed(split, method, given)
    spec, fallbacks = method, [FALLBACK]
    if given is not None:
        if find_method(method.name).open is None:
            raise ConfigError(
                f"--mask-method {method} does not go with --masks {given}; name that as its base: "
                f"--mask-method {{{method.name}: {{base: {{png: {given}}}}}}}"
            )
        spec = parse_spec(dump_yaml({"png": str(given)}, flow=True))
        fallbacks = [method, FALLBACK]
    leaf, partners, flips = _unwrapped(spec, len(split.names))
    tree = None
    if leaf.name == "png":
        tree = _tree(Path(leaf["folder"]), split, classes, names)
    else:
        fallbacks.insert(0, leaf)
    methods = tuple(dict.fromkeys(fallbacks))
    for one in methods[:-1] or methods:  # `FALLBACK` alone is tried only if it is to work
        try_method(one)
    shown = spec
    if leaf.name == "png" and tree is None:
        # The published trees cover the training images only.
        shown = method if given is not None else FALLBACK
        partners, flips = np.arange(len(split.names)), ()
    facts = method_facts(shown) if tree is None else _tree_facts(shown, tree)
    if tree is not None:
        facts["fallback"] = method_facts(methods[0])
    return MaskList(shown, methods, split, partners, flips, tree, facts)


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
    while spec.base is not None:
        if spec.name == "shuffled":
            partners = derangement(count, seed=spec["seed"])[partners]
        else:
            flips.append((spec, partners))
        spec = spec.base
    return spec, partners, tuple(flips)


def _tree(folder: Path, split: Split, classes: list[str], names: Sequence[str]) -> MaskTree | None:
    """Return the tree of a split's masks; None if it holds only the training images'.

    Raises `DataError` for a tree of other images.
    """
    names = names or split.names
    tree = open_tree(folder, split, classes, names=names)
    if tree is None:
        return None
    png = next((name for name in split.names if name.endswith(".png")), "")
    if split.root is not None and png:
        file = split.root / png
        if tree.path(png).resolve() == file.resolve():
            raise DataError(
                f"the masks in {folder} lie among the images, so that they are taken for images, "
                f"too ({file}): move them to a folder of their own"
            )
    # A tree of several splits has the folder of this one for it alone.
    tree = replace(tree, contested=contested(split.names if tree.prefix else names))
    rows = spread(len(split.names), SAMPLE).tolist()
    there = [row for row in rows if os.path.isfile(tree.path(split.names[row]))]
    first = split.names[rows[0]]
    for row in sorted({*rows} - {*there}):
        wanted = tree.usual(split.names[row])
        if twin := other_form(tree.folder, wanted):
            raise DataError(
                f"{tree.folder} has {twin!a}, and the images' names need {wanted!a}: two Unicode "
                f"forms of the same letters. {ONE_FORM}"
            )
    if not there and tree.info is not None and split.folder.lower() in HELD_OUT:
        print(one_line(f"{folder} has no mask of the held-out images"))
        return None
    if not there:
        raise DataError(
            f"none of {len(rows)} images ({first}, ...) has a mask file: for {first} it should be "
            f"{tree.path(first)}. Check the tree's names, or leave --masks out"
        )
    if tree.info is not None and not any(_fits(tree, split, row) for row in there):
        first = split.names[there[0]]
        raise DataError(
            f"{folder} was made from other images: {first} and all {len(there)} compared have "
            f"another size or content now. Make it again with `python -m preprocess.masks`"
        )
    for line in _shared_stems(tree, split) if tree.info is None else unused(tree, split.names):
        print(line)
    return tree


def _shared_stems(tree: MaskTree, split: Split) -> Iterator[str]:
    """Yield a line if images lack masks that a tree from elsewhere may have under their stems."""
    others = [name for name in split.names if name in tree.contested]
    lacking = [name for name in others if not os.path.isfile(tree.path(name))]
    if lacking:
        yield one_line(
            f"note: {len(lacking):,} images have the stem of another one, so that their masks must "
            f"be called by their whole names: the one of {lacking[0]} {tree.path(lacking[0])}. A "
            f"fall-back serves meanwhile"
        )


def _fits(tree: MaskTree, split: Split, row: int) -> bool:
    try:
        find_made(tree.path(split.names[row]), split.image(row), key=tree.key)
    except UnusableImageError:
        return False
    return True


def open_tree(
    tree: Path, split: Split, classes: list[str], *, names: Sequence[str]
) -> MaskTree | None:
    """Return the masks of a split's images, or None if the tree has those of training images only.

    ``tree`` holds ``train/<class>/...``, or, as the published archives do, the classes of the
    training images directly. A tree without the training images' classes is an error. One that
    `make masks` made serves every split: its masks lie under the images' names, as they are. So do
    those of a source whose names do not begin with a split, in ``tree`` or in its train/.
    names: of all splits' images.
    """
    check_tree(tree)
    if (tree / INFO).exists():
        check_whole(tree)
        return MaskTree(tree, info=read_info(tree))
    inside = _inside(tree, split.folder or "train")
    if not split.folder:
        own = any(name.lower().startswith("train/") for name in names)
        return MaskTree(tree if own or inside is None else inside)
    prefix = f"{split.folder}/"
    if inside is not None:
        return MaskTree(inside, prefix)
    if split.folder.lower() != "train":
        return None
    if any((tree / name).is_dir() for name in classes):
        return MaskTree(tree, prefix)
    raise DataError(
        f"the mask tree {tree} has neither train/ nor class folders of the images "
        f"({', '.join(classes[:3])}, ...); expected {tree}/train/<class>/*.png"
    )


def _inside(tree: Path, split: str) -> Path | None:
    """Return the folder of a tree that is called like a split, in any case; None without one."""
    named = [path for path in tree.iterdir() if path.name.lower() == split.lower()]
    folders = sorted(path for path in named if path.is_dir())
    return next((path for path in folders if path.name == split), next(iter(folders), None))


def check_tree(tree: Path) -> None:
    """Raise `DataError` for a tree that is not there."""
    if not tree.is_dir():
        raise DataError(f"the mask tree {tree} is no folder; expected {tree}/train/<class>/*.png")


def _tree_facts(spec: MethodSpec, tree: MaskTree) -> dict[str, Any]:
    """Return the facts of a method over a tree: of one made here, of what made its masks."""
    if tree.info is None:
        return method_facts(spec)
    if spec.name == "png":
        return {**tree.info["method"], "files": {"max_resolution": tree.info["max_resolution"]}}
    facts, base = method_facts(spec), _tree_facts(spec["base"], tree)
    facts["parameters"]["base"] = base
    return {**facts, "supervision": base["supervision"]}
