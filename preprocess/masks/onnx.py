"""Any saliency network in ONNX, run by onnxruntime on one thread; u2netp is the worked example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import BeforeValidator, Field

from harl_fast.errors import ConfigError, DataError
from preprocess.images.arrays import Map, Pixels
from preprocess.masks.spec import NUMBERS

MAP_PX = 128
"""Side of the maps: the network's output, averaged down where it is larger."""


_Mean = Annotated[tuple[Annotated[float, Field(ge=-1000, le=1000)], ...], NUMBERS]
_Std = Annotated[tuple[Annotated[float, Field(ge=1e-6, le=1000)], ...], NUMBERS]


def open_onnx(
    *,
    file: str,
    size: Annotated[int, Field(ge=16, le=4096)] = 320,
    mean: _Mean = (0.485, 0.456, 0.406),
    std: _Std = (0.229, 0.224, 0.225),
    scale: Annotated[Literal["max", "255"], BeforeValidator(str)] = "max",
    output: Annotated[int, Field(ge=0, le=1000)] = 0,
) -> Callable[[Sequence[Pixels]], list[Map]]:
    """Return what runs a file's network on images of any sizes.

    The network takes (N, 3, size, size) float32 and gives one map per image, (N, 1, h, w) or
    (N, h, w). Each map returned is square float32 of at most 128 px, stretched to [0, 1] by its own
    least and largest value, as u2netp's authors do; one without contrast becomes zero.
    Raises `DataError` without onnxruntime and for files that are no such network, `ConfigError`
    for parameters that do not fit it.
    """
    for key, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, 3):
            raise ConfigError(
                f"onnx:{file}: {key} has {len(values)} numbers; give [r, g, b], or one"
            )
    session = _session(file)
    _check_interface(session, file=file, size=size, output=output)
    takes, gives = session.get_inputs()[0], session.get_outputs()[output].name
    # A batch size that the file fixes, mostly 1, against one that it leaves open.
    batch = takes.shape[0] if isinstance(takes.shape[0], int) and takes.shape[0] > 0 else 0
    middle, spread = np.array(mean, np.float32), np.array(std, np.float32)

    def prepared(rgb: Pixels) -> Map:
        """Return (3, size, size): resized, divided by 255 or by its own maximum, normalised."""
        how = cv2.INTER_AREA if min(rgb.shape[:2]) >= size else cv2.INTER_LINEAR
        small = cv2.resize(rgb, (size, size), interpolation=how).astype(np.float32)
        top = np.float32(255) if scale == "255" else max(small.max(), np.float32(1e-6))
        normal = (small / top - middle) / spread
        return np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32)

    def maps(images: Sequence[Pixels]) -> list[Map]:
        ready = np.stack([prepared(rgb) for rgb in images])
        step = batch or len(ready)
        softs: list[Map] = []
        for start in range(0, len(ready), step):
            part = ready[start : start + step]
            full = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
            found = session.run([gives], {takes.name: full})[0]
            softs += [_stretched(one) for one in found[: len(part)]]
        return softs

    return maps


def _check_interface(session: Any, *, file: str, size: int, output: int) -> None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if output >= len(outputs):
        raise ConfigError(f"onnx:{file}: output={output}, but it has only {len(outputs)} outputs")
    shape = inputs[0].shape
    channels = shape[1] if len(shape) == 4 else None
    if len(inputs) != 1 or channels is None or (isinstance(channels, int) and channels != 3):
        raise DataError(
            f"onnx:{file} takes {len(inputs)} inputs, the first of shape {shape}; a saliency "
            f"network takes one of (N, 3, size, size)"
        )
    for side in shape[2:]:
        if isinstance(side, int) and side > 0 and side != size:
            raise ConfigError(
                f"onnx:{file} takes images of {shape[2]} x {shape[3]} px, not {size}: write "
                f"{{onnx: {{file: {file}, size: {side}}}}}"
            )
    if inputs[0].type != "tensor(float)":
        raise DataError(f"onnx:{file} takes {inputs[0].type}; export it with float32 inputs")


def _session(file: str) -> Any:  # onnxruntime has no types
    try:
        import onnxruntime
    except ImportError as error:
        raise DataError(
            f"onnx:{file} needs the package onnxruntime, which cannot be imported ({error}): "
            f"pip install 'onnxruntime>=1.19,<1.33'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a worker has one core
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Its exceptions have no common type of their own.
        raise DataError(
            f"onnx:{file} is no network that onnxruntime {onnxruntime.__version__} reads "
            f"({type(error).__name__}: {error})"
        ) from error


def _stretched(found: Map) -> Map:
    """Return a network's (1, h, w) or (h, w) output as a square map in [0, 1]."""
    soft = found[0] if found.ndim == 3 else found
    if soft.ndim != 2 or (found.ndim == 3 and len(found) != 1):
        raise ValueError(f"an output of shape {found.shape} for an image; one map is needed")
    side = min(MAP_PX, min(soft.shape))
    soft = soft.astype(np.float32)
    low, high = float(soft.min()), float(soft.max())
    if not high - low > 1e-6:
        # NaN passes on, to be refused as no map.
        return np.full((side, side), low - low, np.float32)
    unit = (soft - low) / np.float32(high - low)
    small = cv2.resize(unit, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(np.clip(small, 0, 1), np.float32)
