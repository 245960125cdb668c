"""Files of weights from other programs, read without running any code of theirs."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from harl_fast.config import LARGEST_PX, SMALLEST_PX, Deviation, Share
from harl_fast.errors import CheckpointError, shown
from harl_fast.files import UnusualFileError, open_regular
from harl_fast.section import Section
from harl_fast.tensorfile import damaged_member, grows, open_tensors

TORCH = (".pth", ".pt", ".ckpt", ".bin", ".tar")
GIVEN = (
    f"a run, a step file, an exported folder, a .safetensors file, or one of torch "
    f"({', '.join(TORCH)})"
)
"""What weights are read from, for messages."""
_TENSORFLOW = {".h5", ".hdf5", ".keras", ".pb", ".index", ".meta"}
_JAX = {".npz", ".npy", ".msgpack", ".pkl", ".pickle"}
_DEEPEST = 8
_BROKEN = (
    *(OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError),
    *(LookupError, TypeError, AttributeError, AssertionError, MemoryError, OverflowError),
)
"""What a damaged file makes torch's reader raise."""
_REFUSED = re.compile(r"Unsupported (?:global|class|type)\S*:? ?(?:GLOBAL )?([\w.]+)")


class StatedInputs(Section):
    """What the metadata of an exported file say of images; None where they say nothing."""

    mean: Annotated[tuple[Share, ...], Field(min_length=1)] | None = None
    std: Annotated[tuple[Deviation, ...], Field(min_length=1)] | None = None
    size_px: Annotated[int, Field(ge=SMALLEST_PX, le=LARGEST_PX)] | None = None
    crop: Annotated[float, Field(gt=0.0, le=1.0)] | None = None

    @classmethod
    def of(cls, about: Mapping[str, str]) -> StatedInputs:
        """Return what metadata say; nothing where that is no JSON of such values."""
        try:
            return cls(**{key: json.loads(about[key]) for key in cls.model_fields if key in about})
        except (ValueError, RecursionError):
            return cls()


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors by their dotted names, and a safetensors file's metadata.

    path: ``.safetensors``, or one of `TORCH`, of which nested dictionaries are flattened. Raises
    CheckpointError, for files of TensorFlow and JAX with the converters whose output is read.
    """
    refuse_other_frameworks(path)
    if path.suffix == ".safetensors":
        try:
            with open_tensors(path) as stream:
                tensors = {name: stream.get_tensor(name) for name in list(stream.keys())}
                about: dict[str, str] = stream.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error})") from error
        return _plain(tensors, path), about
    if path.suffix not in TORCH:
        raise CheckpointError(f"{path} is no kind of file that is read: give {GIVEN}")
    return _plain(dict(_flat(_read_torch(path))), path), {}


def _plain(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return tensors; CheckpointError unless each is a dense array of numbers torch computes with.

    Of complex ones it would drop half, for those of 8 bits it lacks most operations.
    """
    for name, tensor in tensors.items():
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize < 2):
            kind = str(tensor.dtype)
        elif tensor.is_meta:
            kind = "no values (device meta)"
        elif tensor.is_nested or tensor.layout is not torch.strided:
            kind = "a nested tensor" if tensor.is_nested else f"a tensor of {tensor.layout}"
        elif tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            kind = "a view that repeats few values, of any size"
        else:
            continue
        raise CheckpointError(
            f"{path}: {shown(name)} holds {kind}, weights are dense arrays of real numbers of 16 "
            f"bits or more: give a file of such"
        )
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors' names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def refuse_other_frameworks(path: Path) -> None:
    """Raise CheckpointError for what TensorFlow or JAX wrote: a file, a prefix or a folder."""
    inside = [*path.glob("*.index"), *path.glob("saved_model.pb")] if path.is_dir() else []
    # Of the files that TensorFlow calls model.ckpt-1000; a name too long for it is no error here.
    prefix = os.path.exists(f"{path}.index")
    if path.suffix in _TENSORFLOW | _JAX or ".data-0" in path.name or inside or prefix:
        raise CheckpointError(
            f"{path} is of TensorFlow or JAX, which is not read here. Convert it: the files that "
            f"tonylins/simclr-converter (SimCLR; give --mean 0,0,0 --std 1,1,1 with them) and "
            f"ajtejankar/byol-convert (BYOL) write for PyTorch are read"
        )


def _read_torch(path: Path) -> object:
    try:
        # Tensors and containers alone: unpickling anything else could run code.
        with open_regular(path) as stream:
            if grows(stream):
                raise CheckpointError(
                    f"{path} is compressed, which torch's own files are not, and may take any "
                    f"memory: save the state_dict() anew"
                )
            if damaged := damaged_member(stream):
                raise CheckpointError(
                    f"{path} is damaged: its part {shown(damaged)} does not match the checksum "
                    f"that it was saved with. Copy it again from where it came"
                )
            return torch.load(stream, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: give {GIVEN}") from error
    except UnusualFileError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        if kind := _REFUSED.search(reason):
            raise CheckpointError(
                f"{path} cannot be read as plain weights: it holds an object of type {kind[1]}, "
                f"and unpickling such a one could run code. Where you trust the file, save its "
                f"state_dict() alone with the program that wrote it: safetensors.torch.save_file("
                f"torch.load(FILE, weights_only=False)['state_dict'], 'encoder.safetensors')"
            ) from error
        raise CheckpointError(
            f"{path} cannot be read as plain weights ({type(error).__name__}: {reason[:200]}). "
            f"Save the network's state_dict() alone, best by safetensors.torch.save_file"
        ) from error


def _flat(content: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dictionaries with their names joined by dots."""
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping) and depth < _DEEPEST:
        items: Mapping[Any, Any] = content
        for name, value in items.items():
            yield from _flat(value, f"{prefix}{name}.", depth + 1)
