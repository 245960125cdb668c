"""The table of hardware, `hardware.yaml`, and the quantities of the command line."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import model_validator

from harl_fast.errors import ConfigError, nearest, shown
from harl_fast.section import Section, validated
from harl_fast.textfile import read_yaml

TABLE = Path(__file__).parent / "hardware.yaml"
GB, MEGA, TERA = 1e9, 1e6, 1e12
Case = Literal["likely", "slow", "fast"]
CASES: tuple[Case, ...] = ("likely", "slow", "fast")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2.0**10, "mi": 2.0**20,
          "gi": 2.0**30, "ti": 2.0**40}  # fmt: skip
_QUANTITY = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+) ?([kKmMgGtT]?i?)([Bb])(?:/s|ps)?")


class Value(NamedTuple):
    """A number and the key of its source."""

    value: float
    source: str


class Range(NamedTuple):
    """A number, its least and its most, and the key of their source."""

    value: float
    least: float
    most: float
    source: str

    def at(self, case: Case) -> float:
        """Return the number of a case; the least makes slow."""
        return {"likely": self.value, "slow": self.least, "fast": self.most}[case]


class Gpu(Section):
    """Peak figures of a GPU; GB and TFLOP are powers of ten, rates are per second."""

    bf16: bool = True
    """Whether its tensor cores take bfloat16."""
    memory_gb: Value
    bandwidth_gb_s: Value
    half_tflops: Value
    """Dense, of bfloat16 or float16."""
    tf32_tflops: Value
    """What convolutions reach in fp32."""
    bus_gb_s: Value
    """NCCL's bus bandwidth within a machine."""
    pcie_gb_s: Value
    """From the host's memory."""
    system_w: Value
    """Power of the whole machine, by its GPUs."""


class Kernels(Section):
    """How a kind of kernels uses a GPU, see `harl_fast.plan.step`."""

    train_mb: Value
    forward_mb: Value
    eta: Range


class LoaderCosts(Section):
    """What the loader costs, see `harl_fast.plan.loader`."""

    scaling: Value
    """Speed of a thread beside others over that of one alone."""
    speed: Range
    """Of a core, against the one that was measured."""
    colour_us_per_mpx: Value
    stores: dict[str, dict[str, Value]]


class Anchor(Section):
    """A published rate of supervised training of a ResNet-50, per GPU."""

    name: str
    gpu: str
    gpus: int
    kernels: Literal["eager", "compiled", "best"]
    precision: Literal["bf16", "fp32"] = "bf16"
    px: int = 224
    rate: Value
    exception: str = ""


class Hardware(Section):
    """The whole table."""

    gpus: dict[str, Gpu]
    kernels: dict[str, Kernels]
    fp32_eta: Range
    sync_bn: Range
    device: dict[str, Value]
    """What else a step costs: bytes moved per pixel of a view or per parameter."""
    loader: LoaderCosts
    store: dict[str, Value]
    """Sizes of stored images, and how fast a disk delivers them."""
    anchors: tuple[Anchor, ...]
    published: dict[str, Value]
    sources: dict[str, str]

    @model_validator(mode="after")
    def _sourced(self) -> Hardware:
        for value in _values(self):
            if value.source not in self.sources:
                raise ValueError(f"source {value.source!r} is not among sources")
        return self


def _values(node: object) -> list[Value | Range]:
    """Return all numbers with sources below a section."""
    if isinstance(node, Value | Range):
        return [node]
    if isinstance(node, Section):
        node = dict(node)
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, tuple) else ()
    return [value for part in parts for value in _values(part)]


@functools.cache
def hardware() -> Hardware:
    """Return the table."""
    table: Hardware = validated(Hardware, read_yaml(TABLE), where=str(TABLE))
    return table


MOST_GPUS = 9999


def parse_gpus(text: str) -> tuple[int, str]:
    """Return how many GPUs a text such as 8xA100-80GB names, and their name in the table.

    Raises ConfigError with the nearest names.
    """
    known = hardware().gpus
    found = re.fullmatch(r"(?:([0-9]+) ?[xX] ?)?([A-Za-z][\w-]*)", text)
    name = found[2].upper() if found else text
    fits = [each for each in known if each.upper() == name or each.upper().startswith(f"{name}-")]
    if not found or len(fits) != 1:
        meant = f"; it may be {' or '.join(fits)}" if fits else nearest(name, known)
        raise ConfigError(
            f"{shown(text)} names no GPUs, such as 8xA100-80GB; known are {', '.join(known)}{meant}"
        )
    count = int((found[1] or "1")[:9])
    if not 1 <= count <= MOST_GPUS:
        raise ConfigError(f"{shown(text)}: give 1 to {MOST_GPUS:,} GPUs")
    return count, fits[0]


def parse_bytes(text: str) -> float:
    """Return the bytes, or bytes per second, of a text such as 1000GB, 1.5TiB or 100Gb (bits).

    Raises ConfigError without a unit, and for nothing at all.
    """
    found = _QUANTITY.fullmatch(text)
    if not found:
        raise ConfigError(
            f"{shown(text)} is no quantity with a unit: write 1000GB (10^9 bytes), 2TB or 1TiB; a "
            f"network's 100Gb counts bits per second"
        )
    size = float(found[1]) * _UNITS[found[2].lower()] / (8 if found[3] == "b" else 1)
    if size <= 0:
        raise ConfigError(f"{shown(text)}: more than nothing is needed")
    return size
