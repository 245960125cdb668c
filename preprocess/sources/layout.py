"""Which split and class the images of a tree belong to, by their paths alone."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harl_fast.errors import DataError, few, one_line
from preprocess.images.listing import Listing, has_image_suffix
from preprocess.sources.base import UNLABELLED, Choices, Rejected, Source, Split
from preprocess.sources.heldout import hold_out, refuse_share

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Those that state a split, in names other than `HELD_OUT` and train."""
HELD_OUT = ("val", "valid", "validation", "test")
"""Folders, in any case, of the images that features are judged on; the first one there is."""
LAYOUT = "expected FOLDER/train/<class>/*.jpg and FOLDER/val/<class>/*.jpg (or test/)"
WITHOUT_LABELS = "--source images reads all images without labels"
ONE_FORM = "Give both the composed form, say by `convmv -f utf8 -t utf8 --nfc -r --notest FOLDER`"
_PACKED = (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".parquet")
"""How files are named that are sources of their own."""
OUTSIDE = ("", "..")
"""First parts of names in an archive that lead out of it: no folders of its own."""
_SHOWN = 5
"""Folders that are named in full."""


def arranged(name: str, shown: str, listing: Listing, choices: Choices) -> Source:
    """Return what lies in a tree of which all is listed, such as an archive's, by `kind_of`.

    name: the source's. shown: what messages call the tree. The splits have no root.
    """
    kind = kind_of(listing)
    if kind == "images":
        return plain_source(name, shown, listing, choices)
    if kind == "classes":
        return class_source(name, shown, {"train": ("", listing)}, choices)
    tops = split_folders(listing.folders)
    parts = {"train": (tops.train, listing.below(tops.train))}
    if tops.held_out:
        parts["val"] = (tops.held_out, listing.below(tops.held_out))
    source = class_source(name, shown, parts, choices)
    loose = sorted(
        path
        for path in (*listing.images, *listing.strange)
        if "/" not in path or path.partition("/")[0] in OUTSIDE
    )
    return with_unread(source, tops, [name for name in loose if name not in listing.folders])


def stated_split(name: str) -> str:
    """Return train, val or test if a name such as ``train2017`` states that split, or ""."""
    words = set(re.split("[^a-z]+", name.lower()))
    return next((split for split, names in _WORDS.items() if not words.isdisjoint(names)), "")


def _check_no_splits(shown: str, classes: Sequence[str]) -> None:
    """Raise `DataError` for classes whose folders are named after splits, as COCO's are."""
    stated = {stated_split(name) for name in classes}
    if "train" in stated and len(stated) > 1 and "" not in stated:
        raise DataError(
            f"{shown} has folders named after splits ({few([*map(one_line, classes)])}), which "
            f"would be its classes: {LAYOUT}, or {WITHOUT_LABELS}; --source classes takes them for "
            f"classes"
        )


def _as_one(shown: str, listing: Listing) -> Iterator[str]:
    """Yield a line on images that are not held out, though their folders' names say so."""
    counts = Counter(map(posixpath.dirname, listing.images))
    stated = {folder: {*map(stated_split, folder.split("/"))} for folder in counts}
    held = sorted(folder for folder, splits in stated.items() if splits & {"val", "test"})
    if held and any("train" in splits for splits in stated.values()):
        yield (
            f"{sum(counts[folder] for folder in held):,} images in folders named after held-out "
            f"parts ({few([*map(one_line, held)])}) are read like the others: only train/ and "
            f"{HELD_OUT[0]}/ right below {shown}, with no other images beside them, are splits"
        )


@dataclass(frozen=True)
class SplitFolders:
    """What the folders of a tree's first level are; empty names for those that are not there."""

    train: str
    held_out: str
    others: list[str]

    @property
    def shown(self) -> str:
        """What messages call the splits."""
        return " and ".join(f"{name}/" for name in (self.train, self.held_out) if name)

    def unread(self, loose: Sequence[str] = ()) -> Iterator[str]:
        """Yield a line on what lies beside the splits. loose: files in no folder."""
        beside = [f"{one_line(name)}/" for name in self.others]
        beside += [f"{len(loose):,} files in no folder ({one_line(loose[0])})"] if loose else []
        if beside:
            yield f"not read, being beside {self.shown}: {few(beside)}"


def with_unread(source: Source, tops: SplitFolders, loose: Sequence[str]) -> Source:
    """Return a source that tells of what lies beside its splits.

    loose: files in no folder. The report lists all of them; a line names folders, and counts those
    that could be meant: images, archives and tables.
    """
    meant = [name for name in loose if has_image_suffix(name) or name.lower().endswith(_PACKED)]
    train = source.splits["train"]
    rejected = [*train.rejected, *(Rejected(name, f"beside {tops.shown}") for name in loose)]
    splits = {**source.splits, "train": replace(train, rejected=rejected)}
    return replace(source, splits=splits, notes=[*source.notes, *tops.unread(meant)])


def split_folders(names: Iterable[str]) -> SplitFolders:
    """Return which of a tree's first folders hold which split, by names in any case."""
    left = sorted(names)

    def take(wanted: Sequence[str]) -> str:
        for name in wanted:
            forms = [each for each in left if each.lower() == name]
            if forms:
                best = name if name in forms else forms[0]
                left.remove(best)
                return best
        return ""

    return SplitFolders(take(["train"]), take(HELD_OUT), left)


def kind_of(listing: Listing) -> str:
    """Return the key of `SOURCES` that a whole tree looks like: folders, classes or images."""
    train = split_folders(listing.folders).train
    if train and any(p.startswith(f"{train}/") and p.count("/") > 1 for p in listing.images):
        return "folders"
    depths = {path.count("/") for path in listing.images}
    tops = {path.partition("/")[0] for path in listing.images}
    if depths == {1} and len(tops) > 1 and not train:
        return "classes"
    return "images"


def class_source(
    name: str, shown: str, parts: Mapping[str, tuple[str, Listing]], choices: Choices
) -> Source:
    """Return images whose classes are the first folders of their paths.

    parts: for "train", and "val" if there is one, its folder ("" for the whole tree) and what lies
    there. Without "val", a share is held out, see `hold_out`. Raises `DataError` for classes that
    cannot be used.
    """
    scans = {split: _scan(shown, *part) for split, part in parts.items()}
    check_classes(scans["train"], scans.get("val"), least=choices.least_classes)
    classes = sorted(scans["train"].by_class)
    if not (scans["train"].folder or choices.source):
        _check_no_splits(shown, classes)
    splits = {split: scan.split(classes) for split, scan in scans.items()}
    notes: list[str] = []
    for scan in scans.values():
        notes += scan.listing.notes(scan.folder or name)
        notes += (f"{scan.without_images(kind)}; it is no class here" for kind in scan.bare)
    if "val" in splits:
        refuse_share(f"{shown} has a held-out part of its own, {scans['val'].prefix}", choices)
    else:
        splits, said = hold_out(splits["train"], choices)
        notes += said
    return Source(name, classes, splits, notes)


def plain_source(name: str, shown: str, listing: Listing, choices: Choices) -> Source:
    """Return all images of a tree, without labels; raises `DataError` if there are none.

    If all lie in train/ and in folders of `HELD_OUT`, these are the splits.
    """
    bare = list(_bare_folders(listing))
    if not listing.images:
        strange = [f"{one_line(path)}: {reason}" for path, reason in listing.strange.items()]
        found = f" ({[*bare, *strange][0]})" if bare or strange else ""
        raise DataError(
            f"{shown} holds no image{found}; give a folder or archive that does: archives inside "
            f"another are not read"
        )
    whole = Split(listing.images, [UNLABELLED] * len(listing.images))
    said: list[str] = []
    tops = [path.partition("/")[0] if "/" in path else "" for path in listing.images]
    there = split_folders(set(tops) - {""})
    if there.train and there.held_out and all(top.lower() in ("train", *HELD_OUT) for top in tops):
        refuse_share(f"{shown} has a held-out part of its own, {there.held_out}/", choices)
        rows = {part: [row for row, top in enumerate(tops) if top == part] for part in set(tops)}
        parts = {"train": there.train, "val": there.held_out}
        splits = {
            name: replace(whole.take(rows[part]), folder=part) for name, part in parts.items()
        }
        said += there.unread()
    else:
        splits, said = hold_out(whole, choices)
        said += _as_one(shown, listing)
    splits["train"] = replace(splits["train"], rejected=_rejected("", listing))
    notes = [*listing.notes(name), *bare[:_SHOWN]]
    if len(bare) > _SHOWN:
        notes.append(f"so have {len(bare) - _SHOWN:,} more folders no image: see the report")
    return Source(name, [], splits, [*notes, *said])


def _bare_folders(listing: Listing) -> Iterator[str]:
    """Yield a line on each folder that holds files, but no image, nor one further down."""
    with_images = {""}
    for path in listing.images:
        while (path := path.rpartition("/")[0]) not in with_images:
            with_images.add(path)
    inside: dict[str, list[str]] = {}
    for path in sorted(listing.strange):
        if (folder := path.rpartition("/")[0]) not in with_images:
            inside.setdefault(folder, []).append(path)
    for folder, paths in inside.items():
        yield (
            f"{one_line(folder)} has no image: none of its {len(paths):,} "
            f"files is one ({one_line(paths[0])}: {listing.strange[paths[0]]})"
        )


def _rejected(prefix: str, listing: Listing) -> list[Rejected]:
    return [Rejected(prefix + path, reason) for path, reason in sorted(listing.strange.items())]


@dataclass
class Scan:
    """One split's class folders."""

    shown: str
    """What messages call the whole source."""
    folder: str
    """train, val or test; empty if the classes lie in the source itself."""
    listing: Listing
    by_class: dict[str, list[str]]
    """Each class's image paths relative to the folder, sorted."""

    @property
    def prefix(self) -> str:
        """What stands before each path in a sample's name."""
        return f"{self.folder}/" if self.folder else ""

    @property
    def place(self) -> str:
        """What messages call the folder."""
        return f"{self.shown}/{self.folder}" if self.folder else self.shown

    @property
    def bare(self) -> list[str]:
        """Class folders without an image."""
        return [name for name in self.listing.folders if name not in self.by_class]

    def split(self, classes: list[str]) -> Split:
        """Return the images by class and name, with labels by the order of ``classes``."""
        numbers = {name: number for number, name in enumerate(classes)}
        pairs = [
            (name, numbers[kind]) for kind in sorted(self.by_class) for name in self.by_class[kind]
        ]
        return Split(
            names=[self.prefix + name for name, _ in pairs],
            labels=[label for _, label in pairs],
            folder=self.folder,
            rejected=_rejected(self.prefix, self.listing),
        )

    def without_images(self, name: str) -> str:
        """Return what to say of a class folder that has no image."""
        inside = [path for path in self.listing.strange if path.startswith(f"{name}/")]
        what = "it holds no file"
        if name in self.listing.strange:
            what = f"it is {self.listing.strange[name]}"
        elif inside:
            first = inside[0]
            reason = self.listing.strange[first]
            what = f"none of its {len(inside):,} files is one ({one_line(first)}: {reason})"
        return f"{self.prefix}{one_line(name)} has no image: {what}"


def _scan(shown: str, folder: str, listing: Listing) -> Scan:
    by_class: dict[str, list[str]] = {}
    loose = 0
    for path in listing.images:
        kind, _, inner = path.partition("/")
        if inner:
            by_class.setdefault(kind, []).append(path)
        else:
            loose += 1
    scan = Scan(shown, folder, listing, by_class)
    if loose:
        raise DataError(
            f"{scan.place} holds {loose:,} images outside any class folder; {LAYOUT}. Move them "
            f"into class folders (ImageNet's validation images need that, too); {WITHOUT_LABELS}"
        )
    if not by_class:
        found = "; ".join(scan.without_images(name) for name in scan.bare[:3])
        raise DataError(f"{scan.place} holds no image{f' ({found})' if found else ''}; {LAYOUT}")
    return scan


def check_classes(train: Scan, held_out: Scan | None, *, least: int) -> None:
    """Raise `DataError` unless there are ``least`` classes, with names that can be told apart, and
    the held-out part has no other ones.
    """
    names = sorted(train.by_class)
    _check_names(train, held_out)
    if len(names) < least:
        raise DataError(
            f"{train.place} has only one class ({names[0]}){_one_level_down(train)}; "
            f"evaluation needs at least two. {WITHOUT_LABELS}"
        )
    if twins := two_forms(names):
        raise DataError(
            f"{train.place} has two class folders that both read {twins[1]}: {twins[0]!a} and "
            f"{twins[1]!a}, two Unicode forms of the same letters. {ONE_FORM}"
        )
    composed = {unicodedata.normalize("NFC", name): name for name in names}
    unknown = sorted(held_out.by_class.keys() - train.by_class.keys()) if held_out else []
    if not held_out or not unknown:
        return
    for name in unknown:
        if name in train.bare:
            raise DataError(
                f"{held_out.place} has images of the class {one_line(name)}, but "
                f"{train.without_images(name)}"
            )
        twin = composed.get(unicodedata.normalize("NFC", name), "")
        if twin:
            raise DataError(
                f"{held_out.place} has the class {name!a} and {train.prefix} has "
                f"{twin!a}: two Unicode forms of {name}. {ONE_FORM}"
            )
    # Letters of other alphabets can look like the ones in train/.
    texts = [one_line(n) if one_line(n) != n or n.isascii() else f"{n} = {n!a}" for n in unknown]
    raise DataError(
        f"{held_out.place} has {len(unknown)} class folders that {train.prefix} lacks "
        f"({few(texts)}); give both the same names"
    )


def two_forms(names: list[str]) -> tuple[str, str] | None:
    """Return the first two names that read alike, being Unicode forms of the same letters."""
    composed: dict[str, str] = {}
    for name in names:
        twin = composed.setdefault(unicodedata.normalize("NFC", name), name)
        if twin != name:
            return twin, name
    return None


def other_form(folder: Path, name: str) -> str:
    """Return the path in a folder that is there in another Unicode form of its letters, or ""."""
    forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")} - {name}
    return next((form for form in sorted(forms) if (folder / form).exists()), "")


def _check_names(train: Scan, held_out: Scan | None) -> None:
    """Raise `DataError` for class names that cannot be told apart as they are printed."""
    beside = f", and its like in {held_out.folder}/" if held_out else ""
    for name in sorted(train.by_class):
        if one_line(name) != name:
            raise DataError(
                f"{train.place} has a class folder whose name does not print "
                f"({one_line(name)}); rename it{beside}"
            )
    scans = (train, held_out) if held_out else (train,)
    spaced = [
        f"{scan.prefix}{name}"
        for scan in scans
        for name in scan.by_class
        if name.strip(" ") != name
    ]
    if spaced:
        listed = ", ".join(one_line(f"'{name}'") for name in spaced[:3])
        raise DataError(
            f"{train.shown} has class folders whose names begin or end with a space "
            f"({listed}); rename them"
        )


def _one_level_down(train: Scan) -> str:
    """Return a hint when the only class folder holds what look like the classes."""
    ((name, paths),) = train.by_class.items()
    inner = sorted({path.split("/")[1] for path in paths if path.count("/") > 1})
    if len(inner) < 2:
        return ""
    listed = few([*map(one_line, inner)], 3)
    return (
        f", and that holds folders itself ({listed}). If those are the classes, they lie one level "
        f"too deep: move them from {train.place}/{name} up to {train.place}, and likewise in val"
    )
