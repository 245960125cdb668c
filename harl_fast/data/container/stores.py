"""How a container stores pictures, as the command line names it."""

from __future__ import annotations

from dataclasses import dataclass

from harl_fast.data.container.fields import MODE_JPG, MODE_NAMES, MODE_RAW, MODE_YUV420
from harl_fast.errors import ConfigError, shown
from harl_fast.options import to_float
from harl_fast.rng import STORE, uniforms

STORES = ("jpg", "passthrough", "raw", "yuv420", "mix")
"""Kinds of stores: JPEG encoded anew, of which the loader decodes only what its crops need; a JPEG
file's own bytes where the loader reads them, else jpg; RGB, 3 bytes per pixel; planar YCbCr with
half the colour resolution, 1.5 bytes per pixel; a share of raw or yuv420, the rest jpg."""


@dataclass(frozen=True)
class Store:
    """A store as the command line names it."""

    kind: str
    """One of `STORES`."""
    share: float = 0.0
    """Of a mix: the share of uncompressed samples."""
    open_mode: int = MODE_RAW
    """Of a mix: how those are stored."""

    @property
    def name(self) -> str:
        """The text that `parse_store` turns into this store."""
        if self.kind != "mix":
            return self.kind
        tail = "" if self.open_mode == MODE_RAW else f":{MODE_NAMES[self.open_mode]}"
        return f"mix:{self.share:g}{tail}"

    @property
    def shares(self) -> dict[str, float]:
        """The share of the samples by how they are stored: a kind, but of a mix its parts."""
        if self.kind != "mix":
            return {self.kind: 1.0}
        return {MODE_NAMES[self.open_mode]: self.share, "jpg": 1.0 - self.share}

    @property
    def has_yuv420(self) -> bool:
        """Whether any sample may be stored as `MODE_YUV420`."""
        return self.kind == "yuv420" or (self.kind == "mix" and self.open_mode == MODE_YUV420)

    def mode(self, position: int) -> int:
        """Return how a picture that has to be encoded is stored.

        position: the image's place in its split's list, which is its sample id but for the files
        left out before it.
        """
        if self.kind == "mix":
            draw = uniforms(0, 0, [position], view=0, purpose=STORE, count=1)[0, 0]
            return self.open_mode if draw < self.share else MODE_JPG
        return {"raw": MODE_RAW, "yuv420": MODE_YUV420}.get(self.kind, MODE_JPG)


DEFAULT_STORE = Store("jpg")


def parse_store(text: str) -> Store:
    """Return the store that a text such as ``jpg`` or ``mix:0.25`` names. Raises ConfigError."""
    kind, *rest = text.split(":")
    if kind in STORES and kind != "mix" and not rest:
        return Store(kind)
    known = ", ".join([*(name for name in STORES if name != "mix"), "mix:P", "mix:P:yuv420"])
    if kind != "mix" or not 1 <= len(rest) <= 2 or rest[1:] not in ([], ["raw"], ["yuv420"]):
        raise ConfigError(f"{shown(text)} is no store: {known}")
    try:
        share = to_float(rest[0])
    except ValueError:
        share = 0.0
    if not 0.0 < share < 1.0:
        raise ConfigError(f"{shown(text)}: the share in mix:P is a number between 0 and 1")
    return Store("mix", share, MODE_YUV420 if rest[1:] == ["yuv420"] else MODE_RAW)
