"""The names of all samples of a container or a set."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from harl_fast.data.container.manifest import REMEDY, find_container, names_path, read_manifest
from harl_fast.errors import DataError, shown
from harl_fast.files import read_regular

_LOOKED_FOR = 20
"""Samples by whose names a folder of images is known; one may have been removed since."""


def read_names(path: Path) -> list[str]:
    """Return the source-relative path of every sample, in the order of the sample ids.

    path: a container or a set's folder. Names are as `write_names` escaped them. Raises DataError
    if a file of names is missing or belongs to another container, or has not one for each sample.
    """
    if path.is_dir():
        shards = read_manifest(path).shards
        return [name for shard in shards for name in read_names(path / shard.file)]
    file, manifest = names_path(path), read_manifest(path)
    content = read_regular(file) if file.is_file() else b""
    if hashlib.sha256(content).hexdigest() != manifest.names_sha256:
        raise DataError(
            f"{file} is missing or belongs to another container. Copy the files of a container "
            f"together, or: {REMEDY}"
        )
    names = content.decode("utf-8", "backslashreplace").split("\n")[:-1]
    if len(names) != manifest.count:
        raise DataError(f"{file} has {len(names):,} lines for {manifest.count:,} samples. {REMEDY}")
    return names


def check_source(folder: Path, source: str, *, data: Path, listed: Path | None = None) -> None:
    """Raise DataError unless the containers in a folder are of these images, as far as names tell.

    source: what their manifest must call them. data: the folder of the images; if it is still
    there, one of the first samples must be. listed: the list by which they were converted, if by
    one: its absolute paths must be of ``data``.
    """
    train = find_container(folder, "train")
    found = read_manifest(train).source
    if found != source:
        raise DataError(
            f"{folder} holds containers of {shown(found)}, not of {shown(source)}: delete them, or "
            f"choose another folder"
        )
    if listed is not None and listed.is_file():
        same = os.fsencode(f"{data.resolve()}{os.sep}") in read_regular(listed)
    else:
        first = read_names(train)[:_LOOKED_FOR]
        same = listed is not None or not data.is_dir() or any((data / n).exists() for n in first)
    if not same:
        raise DataError(
            f"{folder} holds containers of another folder {shown(source)}, none of whose images "
            f"are in {data}: delete them, or choose another folder"
        )
