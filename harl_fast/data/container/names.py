"""The names of all samples of a container or a set."""

from __future__ import annotations

import hashlib
from pathlib import Path

from harl_fast.data.container.manifest import REMEDY, names_path, read_manifest
from harl_fast.errors import DataError
from harl_fast.files import read_regular


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
