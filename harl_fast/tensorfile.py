"""Files of tensors: of any name and size, with failures that are those of files."""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from harl_fast.files import open_regular


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a file of torch's tensors, as `safetensors.safe_open` does.

    Raises OSError if it cannot be read, and SafetensorError if it is not such a file.
    """
    with open_regular(path) as stream:
        name = f"/proc/self/fd/{stream.fileno()}"  # the library refuses names that are not UTF-8
        with safe_open(name, framework="pt") as found:
            yield found


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[str]:
    """Yield a name of a folder that the library takes: its own need not be UTF-8."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def grows(stream: BinaryIO) -> bool:
    """Return whether a file is a zip archive that is larger unpacked, as compressed ones are.

    Neither NumPy nor torch writes such, both read them, and a megabyte can become gigabytes.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            unpacked = sum(each.file_size for each in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError):
        return False
    finally:
        stream.seek(0)
    return unpacked > os.fstat(stream.fileno()).st_size


def damaged_member(stream: BinaryIO) -> str:
    """Return the first part of a zip archive whose bytes its checksum does not fit, or "".

    torch writes checksums, and compares none.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            return archive.testzip() or ""
    except (zipfile.BadZipFile, NotImplementedError):
        return ""
    finally:
        stream.seek(0)


def save_tensors(
    path: Path, tensors: Mapping[str, Any], *, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors of torch with a new file's usual permissions, not its owner's alone.

    Raises OSError.
    """
    from safetensors.torch import save_file  # takes torch, which readers need not have

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:
        code = re.search(r"\(os error ([0-9]+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    path.chmod(mode)
