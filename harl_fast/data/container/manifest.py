"""What lies beside a container: its manifest, its sample names and their checksums.

``train.beton`` has ``train.json`` (the manifest) and ``train.names.txt`` (one source-relative
path per sample, in sample order) in the same folder. Several containers may form a set, a folder
``train`` of them, each with its own manifest and names; ``train.json`` then is the set's manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from harl_fast.data.container.checksum import CHECKED, CRC32
from harl_fast.data.container.facts import Facts, Texts, merged
from harl_fast.errors import DataError, one_line, shown
from harl_fast.files import BROKEN_ARRAYS, naming, replacing, sha256_file, write_json, write_text
from harl_fast.kinds import Whole, of_kind
from harl_fast.textfile import read_json, tree_sha256

FORMAT_VERSION = 1
FIELDS = ("image", "mask", "label")
"""The container's fields, in order."""
MOST_BYTES = 1 << 26
"""Largest manifest; 20,000 classes take 1 MB."""

_NAMES_BLOCK = 1 << 20
"""Bytes of names that are looked at together."""

_header = threading.Lock()
"""An array file's header is a Python literal. CPython 3.11 fails to parse it (SystemError) where
another thread parses one meanwhile, as a garbage collection with a callback lets it."""
_SEAL = "manifest_sha256"
"""Key of the SHA-256 of all other keys: names and numbers that no checksum of a file covers.

It guards against accident, not against intent: who edits a manifest can make it anew, or remove it,
since nothing else tells manifests from before it from later ones.
"""

PUBLISHING = ".publish.json"
"""Note of a conversion whose files are taking their names."""
REMEDY = "Write the container again with `make beton`."


@dataclass(frozen=True)
class Shard:
    """One container of a set, as the set's manifest lists it."""

    file: str
    """Its name in the set's folder."""
    count: Whole
    beton_bytes: Whole
    beton_sha256: str
    manifest_sha256: str
    """The seal of its own manifest."""


@dataclass(frozen=True)
class Manifest:
    """Everything known about a container, or about a set of them, without opening it."""

    format_version: Whole
    split: str
    """``train`` or ``val``."""
    count: Whole
    """Number of samples."""
    classes: list[str]
    """Class names; a label is an index into this list. Empty if every label is -1 (none)."""
    class_counts: list[Whole]
    """Samples of each class."""
    source: str
    """Name of the source: a folder's base name or a data set's name, never an absolute path."""
    mask: dict[str, Any]
    """method, parameters (resolved; files by their base name), supervision ("none"; "external" if
    people drew masks for the training of a network that was used; "unknown" of mask files, which do
    not tell), version (of the method's text) and sha256 (of its file), if any; size, coverage_mean,
    empty_share, full_share; fallbacks: how many samples another method served, mostly ``fallback``;
    stand_ins: how many got the centre ellipse. ``files`` stands there if masks came out of a tree
    of `make masks` (older containers: ``cache``); edited: how many of them were a user's own. Older
    containers say "tree" and "external" for mask files. Nothing reads the method's part."""
    store: dict[str, Any]
    """kind ("jpg", "passthrough", "raw", "yuv420", "mix:..."), max_resolution, quality. Containers
    written before there were other kinds than jpg have only these; newer ones add pixels (of all
    images), modes ({mode: {count, bytes}}), restart_markers (every JPEG has those of
    `preprocess.encode`), for passthrough passed_through and reencoded ({reason: count}), and with
    ``--keep-warned`` warned: how many damaged files were kept. The newest add
    `preprocess.images.reading.Reading.facts` (before, range "full" and no profile) and remarks
    ({what was done to pixels: count}). The loader reads samples' own modes and needs none."""
    skipped: Whole
    """Source files that were left out; they are listed in ``<split>.report.json``."""
    beton_bytes: Whole
    beton_sha256: str
    """`digest.file_digest`; in older containers, and in those of one piece, the file's SHA-256."""
    names_sha256: str
    created: str
    """ISO 8601, UTC."""
    tool_versions: dict[str, Texts]
    tables_sha256: str = ""
    """`integrity.tables_sha256`; empty, like the next, in containers from before these checks."""
    sums_sha256: str = ""
    prints_sha256: str = ""
    """Of ``<split>.prints.npy``, for additions to the set. Of a set, this and the other SHA-256 are
    those of its shards' hexadecimal digests, one after another."""
    shards: list[Shard] = field(default_factory=list)
    """Of a set, in the order in which the sample ids run through them; else empty."""
    provider: str = ""
    """Whose the data set named ``source`` is, with its splits: "torchvision"; empty for files that
    were given, whatever the name of their folder, and for a set that others were added to."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Of a set: created, source, first (sample id) and count of each conversion or addition."""
    manifest_sha256: str = field(default="", compare=False)
    """The seal: SHA-256 of all other keys, names and numbers that no checksum of a file covers."""


def containers_in(folder: Path, split: str) -> list[Path]:
    """Return which of the container ``<split>.beton`` and the set ``<split>/`` are in a folder.

    A folder without containers is no set: it may be where the images came from.
    """
    single, several = folder / f"{split}.beton", folder / split
    found = [single] if single.exists() else []
    return found + ([several] if next(several.glob("*.beton"), None) else [])


def find_container(folder: Path, split: str) -> Path:
    """Return the container or the set of a split in a folder; DataError if both or none are."""
    found = containers_in(folder, split)
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(map(str, found))
        raise DataError(f"{both} are both there: remove the one that is not meant")
    if folder.is_file() or manifest_path(folder).is_file():
        raise DataError(
            f"{folder} is one split's container, set or manifest: give the folder that holds it, "
            f"{folder.parent}"
        )
    if not folder.exists():
        raise DataError(f"{folder} does not exist: give a folder that `make beton` filled")
    raise DataError(f"{folder} has neither {split}.beton nor a set {split}/. {REMEDY}")


def manifest_path(beton: Path) -> Path:
    """Return where the manifest of a container or of a set lies."""
    return beton.parent / f"{beton.stem}.json"  # also of ".", which has no name


def names_path(beton: Path) -> Path:
    """Return where a container's sample names lie."""
    return beton.with_suffix(".names.txt")


def write_manifest(beton: Path, manifest: Manifest) -> Manifest:
    """Write the manifest in one atomic step and return it with its seal.

    Do it last: it vouches for the other files.
    """
    tree = json.loads(json.dumps(dataclasses.asdict(manifest)))  # as it will be read
    del tree[_SEAL]
    seal = tree_sha256(tree)
    write_json(manifest_path(beton), {**tree, _SEAL: seal})
    return dataclasses.replace(manifest, manifest_sha256=seal)


def merge_manifests(
    shards: Sequence[tuple[str, Manifest]], history: Sequence[dict[str, Any]]
) -> Manifest:
    """Return the manifest of a set.

    shards: (name in the set's folder, manifest as `write_manifest` or `read_manifest` returned it)
    in order. Each has the longest list of classes or its beginning. Raises DataError for shards
    that do not fit together.
    """
    manifests = [manifest for _, manifest in shards]
    classes = max((each.classes for each in manifests), key=len)
    for name, each in shards:
        if each.classes != classes[: len(each.classes)] or each.split != manifests[0].split:
            raise DataError(f"shard {name} has other classes, or another split, than the others")
        if each.mask["size"] != manifests[0].mask["size"]:
            raise DataError(
                f"shard {name} has masks of {each.mask['size']} px, the first one has "
                f"{manifests[0].mask['size']} px: the masks of a set have one size. Convert them "
                f"with the same --mask-size"
            )
    counts = [each.count for each in manifests]
    totals = [0] * len(classes)
    for each in manifests:
        for label, count in enumerate(each.class_counts):
            totals[label] += count
    return Manifest(
        format_version=FORMAT_VERSION,
        split=manifests[0].split,
        count=sum(counts),
        classes=classes,
        class_counts=totals,
        source=", ".join(dict.fromkeys(each.source for each in manifests)),
        provider=manifests[0].provider if len({each.provider for each in manifests}) == 1 else "",
        mask=merged([each.mask for each in manifests], counts),
        store=merged([each.store for each in manifests], counts),
        skipped=sum(each.skipped for each in manifests),
        beton_bytes=sum(each.beton_bytes for each in manifests),
        beton_sha256=_joint([each.beton_sha256 for each in manifests]),
        names_sha256=_joint([each.names_sha256 for each in manifests]),
        created=max(each.created for each in manifests),
        tool_versions=merged([each.tool_versions for each in manifests], counts),
        tables_sha256=_joint([each.tables_sha256 for each in manifests]),
        sums_sha256=_joint([each.sums_sha256 for each in manifests]),
        prints_sha256=_joint([each.prints_sha256 for each in manifests]),
        shards=[
            Shard(name, each.count, each.beton_bytes, each.beton_sha256, each.manifest_sha256)
            for name, each in shards
        ],
        history=list(history),
    )


def _joint(digests: Sequence[str]) -> str:
    """Return the SHA-256 of hexadecimal digests, or "" if a shard has none."""
    return hashlib.sha256("".join(digests).encode()).hexdigest() if all(digests) else ""


def write_names(beton: Path, names: Sequence[str]) -> str:
    """Write the sample names in one atomic step and return the SHA-256 of the file's bytes.

    Line breaks and bytes that are not UTF-8 appear as backslash escapes: one line is one sample.
    """
    text = "".join(one_line(name) + "\n" for name in names)
    write_text(names_path(beton), text)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sums_path(beton: Path) -> Path:
    """Return where the checksums of a container's samples lie."""
    return beton.with_suffix(".sums.npy")


def write_sums(beton: Path, sums: Sequence[int]) -> str:
    """Write the checksums of the stored image and of the stored mask, sample by sample.

    sums: of `checksum.stored_sum`. Returns the SHA-256 of the file, which numpy.load reads as
    (N, 2) uint64; containers written before have uint32: CRC-32. The sums tell which samples are
    damaged where the container's one checksum only tells that some are.
    """
    path = sums_path(beton)
    with replacing(path) as temporary, naming(path), open(temporary, "wb") as stream:
        np.save(stream, np.asarray(sums, CHECKED).reshape(-1, 2))
    return sha256_file(path)


def read_sums(beton: Path, manifest: Manifest) -> npt.NDArray[np.uint64 | np.uint32] | None:
    """Return (N, 2) sums of the kind that their dtype tells, or None for containers without.

    Raises DataError when the file is missing or not the one that was written.
    """
    path = sums_path(beton)
    if not manifest.sums_sha256:
        return None
    if not path.is_file() or sha256_file(path) != manifest.sums_sha256:
        raise DataError(
            f"{path} is missing or belongs to another run. Copy the files of a container "
            f"together, or: {REMEDY}"
        )
    try:
        with _header:
            sums = open_memmap(path, mode="r")  # mapped: a header cannot ask for more than it has
    except BROKEN_ARRAYS as error:
        raise DataError(f"{path} holds no checksums ({shown(str(error))}). {REMEDY}") from error
    if sums.shape != (manifest.count, 2) or sums.dtype not in (CHECKED, CRC32):
        raise DataError(
            f"{path} holds {sums.dtype} of shape {sums.shape}; two checksums for each of "
            f"{manifest.count} samples are expected. {REMEDY}"
        )
    return np.array(sums, order="C")


def _remedy(beton: Path, files: str) -> str:
    if (beton.parent / PUBLISHING).exists():
        return "A `make beton` was cut short while its files took their names: run the same again."
    return f"Copy the files of {files} together, or: {REMEDY}"


def read_manifest(beton: Path) -> Manifest:
    """Return the manifest of a container or of a set; `DataError` if missing, damaged or edited.

    Manifests that were written before seals have no `_SEAL` and are taken as they are.
    """
    path = manifest_path(beton)
    if beton == path:
        raise DataError(f"{beton} is a manifest: give the {beton.stem}.beton or set that it is of")
    if not path.exists():
        if inside := [each for split in ("train", "val") for each in containers_in(beton, split)]:
            raise DataError(
                f"{beton} is the folder around containers: give one of them, such as {inside[0]}"
            )
        if not beton.exists():
            raise DataError(f"{beton} does not exist: give a container that `make beton` wrote")
        raise DataError(
            f"{path} is missing: {beton} has no manifest beside it. {_remedy(beton, 'a container')}"
        )
    try:
        tree = read_json(path, error=DataError, most_bytes=MOST_BYTES)
        seal = tree.pop(_SEAL, None)
        found = tree_sha256(tree)
    except DataError as error:
        raise DataError(f"{error}. {REMEDY}") from error
    sealed, where = {**tree, _SEAL: seal or ""}, f"{path} is no manifest"
    for kind in (Facts, Manifest):
        checked = of_kind(sealed, kind, where=where, remedy=REMEDY, error=DataError)
    manifest: Manifest = checked
    if manifest.format_version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format {manifest.format_version}, this program reads {FORMAT_VERSION}. "
            f"{REMEDY}"
        )
    if seal not in (None, found):
        raise DataError(
            f"{path} was changed after it was written (its SHA-256 differs). Copy it again, or: "
            f"{REMEDY}"
        )
    _check_fit(beton, manifest)
    return manifest


def _check_fit(beton: Path, manifest: Manifest) -> None:
    """Raise `DataError` unless a manifest is of the files beside it, and of itself."""
    path = manifest_path(beton)
    if {beton.stem, manifest.split} == {"train", "val"}:
        raise DataError(
            f"{beton} is of the split {manifest.split} by its manifest: the files were renamed. "
            f"Give them their names again"
        )
    if beton.is_dir() != bool(manifest.shards):
        described = "a set of containers" if manifest.shards else "a single container"
        found = "a folder" if beton.is_dir() else "a file, or missing"
        raise DataError(
            f"{path} describes {described}, {beton} is {found}. {_remedy(beton, 'one conversion')}"
        )
    for shard in manifest.shards:
        if Path(shard.file).name != shard.file:
            raise DataError(f"{path}: {shown(shard.file)} is no file of the set's folder. {REMEDY}")
    if manifest.shards and (total := sum(each.count for each in manifest.shards)) != manifest.count:
        raise DataError(f"{path} counts {manifest.count:,} samples, its shards {total:,}. {REMEDY}")


def read_shard(folder: Path, shard: Shard) -> Manifest:
    """Return the manifest of one container of a set; DataError if it is not the one listed."""
    beton = folder / shard.file
    manifest = read_manifest(beton)
    if manifest.manifest_sha256 != shard.manifest_sha256 or manifest.count != shard.count:
        raise DataError(
            f"{manifest_path(beton)} is not the one that the set's {manifest_path(folder).name} "
            f"lists: another conversion's shard. {_remedy(folder, 'a set')}"
        )
    return manifest


def check_labelled(beton: Path, manifest: Manifest) -> None:
    """Raise `DataError` for a container without labels, by which features could be judged."""
    if not manifest.classes:
        raise DataError(
            f"{beton} has no labels, and features are judged by them. Convert images in class "
            f"folders or a list with a column label (docs/data.md), or judge the features on "
            f"another set, say `make lineval DATA=<its containers>`"
        )


def sample_name(path: Path, index: int) -> str:
    """Return the source-relative path of one sample of a container or a set, for messages.

    The names before it in its file are counted, not read: a tenth of a second for 10 million.
    """
    if path.is_dir():
        for shard in read_manifest(path).shards:
            if index < shard.count:
                return sample_name(path / shard.file, index)
            index -= shard.count
    names, before = names_path(path), index
    try:
        with open(names, "rb") as stream:
            while block := stream.read(_NAMES_BLOCK):
                if before > (lines := block.count(b"\n")):
                    before -= lines
                    continue
                skipped = sum(len(line) + 1 for line in block.split(b"\n", before)[:before])
                stream.seek(skipped - len(block), os.SEEK_CUR)
                if line := stream.readline():
                    return line.decode(errors="backslashreplace").rstrip("\n")
    except FileNotFoundError:
        raise DataError(f"{names} is missing. {REMEDY}") from None
    raise DataError(f"{names} has no line {index + 1}, the name of sample {index}. {REMEDY}")
