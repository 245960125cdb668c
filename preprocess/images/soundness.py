"""Files to pixels, JPEG and WebP together with a verdict on whether they are sound.

No exception does not mean no damage. Pillow passes over libjpeg's warnings, and a warning is all
that libjpeg has to say of a hole, of zeroed bytes or of a missing end: it fills the rest with grey
and goes on. TurboJPEG gives the same pixels, bit for bit, and tells whether there was a warning.

The rule for JPEGs: whatever libjpeg warns of is damaged. It does not warn of what concerns no
pixel: bytes after the end, fill bytes, unknown application segments. Some of its warnings are
harmless in some files ("extraneous bytes before marker" where a camera pads with zeros, "Invalid
SOS parameters", "unknown JFIF revision", "Premature end of JPEG file" where the end marker alone is
lacking), but the same words are the only trace of a hole in others, and TurboJPEG tells no more
than the first one. Such files are for a person to judge: ``--keep-warned`` takes them. What cannot
be known: a progressive JPEG that was cut between two scans and given an end marker is a whole JPEG
of fewer scans.

WebP has no checksum, and libwebp decodes whatever bits it finds. It does refuse data that end too
early, cut chunks and wrong sizes among them. Changed bytes can be seen by what they leave behind:
after them the decoder reads other symbols, of other lengths, and gets through the picture without
some of the data, where it needs a sound file's to the end. What cannot be known: a change whose
symbols happen to take as many bits, such as single bytes of a lossless file; changes in the alpha
channel, in frames after an animation's first, and in data of under `_LEAST_BYTES`.
"""

from __future__ import annotations

import ctypes
import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from harl_fast.data.views.jpeg import ANOTHER_SIZE, decode_pixels, jpeg_error
from preprocess.images.arrays import Pixels
from preprocess.images.png import deep_transparency
from preprocess.images.reading import UnusableImageError

DAMAGED = "damaged: "
"""How the reasons begin for which ``--keep-warned`` is there."""
_PIXELS = {"L": (1, 6), "RGB": (3, 0), "CMYK": (4, 11)}
"""Channels of Pillow's modes of JPEGs, and TurboJPEG's pixel format (TJPF_*) of each."""
_SPARED = 32
"""Bytes that a sound WebP cannot do without: encoders add 4 at most to what they need."""
_LEAST_BYTES = 4 * _SPARED
_LOSSY = ("jpeg", "tiff_jpeg")
"""Pillow's names of compressions inside a TIFF."""
_FRAME_HEAD = 8 + 16
"""Bytes of an animation's chunk ANMF before the chunks of its frame."""


class Loaded(NamedTuple):
    """An opened image with its pixels, at the size it was drafted for."""

    file: Image.Image
    """Its mode, format, size and metadata."""
    pixels: Pixels | None = None
    """(H, W, C) of a sound JPEG. Of all else they are in ``file``, loaded by Pillow unless damaged:
    then to be loaded by Pillow or not at all."""
    warning: str = ""
    """What is damaged, if anything is."""

    def image(self) -> Image.Image:
        """Return all of it as Pillow's image, for a JPEG a copy."""
        if self.pixels is None:
            return self.file
        flat = self.pixels.squeeze(2) if self.pixels.shape[2] == 1 else self.pixels
        image = Image.fromarray(flat, self.file.mode)
        image.format, image.info = self.file.format, self.file.info
        return image


def load_judged(image: ImageFile.ImageFile, file_size: tuple[int, int]) -> Loaded:
    """Return an opened image loaded, and what is damaged.

    file_size: (width, height) before it was drafted. Raises `UnusableImageError` for pixels of
    colours that their palette lacks; a transparent one needs no colour.
    """
    if image.format in ("JPEG", "MPO"):
        return _load_jpeg(image, file_size)
    if image.format == "WEBP" and _decodes(_without_end(_file_bytes(image))):
        return Loaded(image, warning=f"{DAMAGED}a WebP that decodes without the end of its data")
    if image.format == "PNG" and "transparency" in image.info and image.tile[0].args == "RGB;16B":
        deep_transparency(image, _file_bytes(image))
    image.load()
    if image.mode == "P":
        colours = len(image.getpalette() or ()) // 3
        hidden = image.info.get("transparency")
        used = [index for index, count in enumerate(image.histogram()) if count and index != hidden]
        if used and used[-1] >= colours:
            raise UnusableImageError(
                f"{DAMAGED}a pixel has colour {used[-1]} of the {image.format}'s palette, which "
                f"ends at {colours - 1}"
            )
    return Loaded(image)


def has_zero_steps(jpeg: Image.Image) -> bool:
    """Return whether a table by which an opened JPEG's colours are quantized has zeros.

    There are none by the standard (T.81, B.2.4.1), and libjpeg takes them without a word: what they
    stand for becomes flat.
    """
    tables, layers = jpeg.quantization, jpeg.layer  # type: ignore[attr-defined]
    return any(0 in tables.get(number, ()) for *_, number in layers)


def _load_jpeg(image: ImageFile.ImageFile, file_size: tuple[int, int]) -> Loaded:
    if has_zero_steps(image):
        return Loaded(image, warning=f"{DAMAGED}a quantization table of the JPEG has zeros")
    data = np.frombuffer(_file_bytes(image), np.uint8)
    if image.icclist:  # type: ignore[attr-defined]  # parts of a profile that Pillow left aside
        image.info.setdefault("icc_profile", None)
    channels, pixel_format = _PIXELS[image.mode]
    pixels = np.empty((image.height, image.width, channels), np.uint8)
    code = decode_pixels(data, file_size[::-1], pixels, pixel_format)
    if code == ANOTHER_SIZE:
        problem = "Pillow and libjpeg find pictures of other sizes in it"
        return Loaded(image, warning=f"{DAMAGED}{problem}")
    if code != 0:
        text = ctypes.string_at(jpeg_error()).decode("ascii", "backslashreplace")
        return Loaded(image, warning=f"{DAMAGED}libjpeg warns: {text}")
    # CMYK as Pillow reads it, see `colours.to_rgb`.
    return Loaded(image, ~pixels if image.mode == "CMYK" else pixels)


def _file_bytes(image: ImageFile.ImageFile) -> bytes:
    assert image.fp is not None
    image.fp.seek(0)
    return image.fp.read()


def is_lossy(image: ImageFile.ImageFile) -> bool:
    """Return whether the pixels of an opened image, not yet loaded, are only near what was saved.

    As JPEG and the lossy kind of WebP keep them, also inside a TIFF.
    """
    if image.format == "WEBP":
        return _coded(_file_bytes(image))[0] == b"VP8 "
    return image.format in ("JPEG", "MPO") or image.info.get("compression") in _LOSSY


def _coded(webp: bytes) -> tuple[bytes, int, int]:
    """Return the kind of the first frame's coded data, VP8L if lossless, their place and length."""
    at = 12
    while at + 8 <= len(webp):
        kind, length = webp[at : at + 4], int.from_bytes(webp[at + 4 : at + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind, at + 8, length
        at += _FRAME_HEAD if kind == b"ANMF" else 8 + length + length % 2
    return b"", at, 0


def _without_end(webp: bytes) -> bytes | None:
    """Return the first frame's coded data without their end, or None if they are too few."""
    kind, at, length = _coded(webp)
    if length < _LEAST_BYTES:
        return None
    length = (length - _SPARED) & ~1
    whole = b"WEBP" + kind + length.to_bytes(4, "little") + webp[at : at + length]
    return b"RIFF" + len(whole).to_bytes(4, "little") + whole


def _decodes(webp: bytes | None) -> bool:
    if webp is None:
        return False
    try:
        with Image.open(io.BytesIO(webp), formats=("WEBP",)) as image:
            image.load()
    except (OSError, EOFError):
        return False
    return True
