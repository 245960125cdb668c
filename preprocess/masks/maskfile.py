"""A mask that `make masks` made: a PNG of 1 bit per pixel, with a record of its image inside.

Any viewer shows it and any reader of mask files takes it, as it has the proportions of its image as
the file holds it. The record is written with the pixels in one step: after any kill, copy or edit
it tells whether they still are the mask of that image.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, Field

from harl_fast.files import short_temporary
from preprocess.images.arrays import Mask
from preprocess.images.decode import TURNS, Frame, open_file, open_mask
from preprocess.images.members import FileRef, ImageRef, Page, place_print, written_ns
from preprocess.images.reading import UnusableImageError
from preprocess.masks.controls import CANVAS_PX

TEXT = "harl_fast mask"
"""Keyword of the PNG's text that holds its `Record` as JSON."""
_LONGEST_PX = CANVAS_PX * 128
"""Of a mask's sides. Only images that are over 128 times as long as wide lose columns by it."""
_BACK = {6: 8, 8: 6}
"""Orientations whose turn another one undoes; each other one undoes itself."""


class Fingerprint(NamedTuple):
    """What tells an image from a changed one: same size, and same time and place or content."""

    size: int
    mtime_ns: int
    """Of the file that holds it."""
    crc: int
    """CRC-32 of its bytes."""
    place: int = 0
    """Of a member of another file, see `place_print`; 0 of files of their own."""

    @staticmethod
    def of(image: FileRef) -> Fingerprint:
        """Return an image's fingerprint; reads all of it."""
        status = _holder(image).stat()
        size = crc = 0
        with open_file(image) as stream:
            while block := stream.read(1 << 20):
                size, crc = size + len(block), zlib.crc32(block, crc)
        return Fingerprint(size, written_ns(status), crc, _place(image, status.st_size))

    def fits(self, image: FileRef) -> bool:
        """Return whether an image is unchanged.

        Reads it only if its time differs, as a copy's, or its place in the file that holds it.
        """
        try:
            status = _holder(image).stat()
            if isinstance(_file(image), Path) and status.st_size != self.size:
                return False
            if (written_ns(status), _place(image, status.st_size)) == (self.mtime_ns, self.place):
                return True
            found = Fingerprint.of(image)
        except OSError:
            return False
        return (found.size, found.crc) == (self.size, self.crc)


def _file(image: FileRef) -> FileRef:
    return image.file if isinstance(image, Page) else image


def _holder(image: FileRef) -> Path:
    return image if isinstance(image, Path) else image.path


def _place(image: FileRef, file_bytes: int) -> int:
    file = _file(image)
    return 0 if isinstance(file, Path) else place_print(file, file_bytes)


class Record(BaseModel):
    """What a mask was made of."""

    key: str
    """Of the method and the frame, see `tree.key_of`."""
    image: Fingerprint
    orientation: Annotated[int, Field(ge=1, le=8)]
    """Of the image, EXIF: the mask's pixels lie as the file's."""
    stand_in: bool
    """A centre ellipse, because nothing sound was found."""
    problem: str
    """Why a fall-back serves, and which; empty if none does."""
    pixels: int = 0
    """A checksum of the file's pixels, which `write_made` fills in."""


class MadeMask(NamedTuple):
    """A mask as `make masks` made it."""

    mask: Mask
    """(128, 128) in the frame of the upright image, see `CANVAS_PX`."""
    record: Record


def write_made(path: Path, made: MadeMask, frame: Frame) -> None:
    """Write a mask in one atomic step.

    frame: of its image. Nothing is flushed to the disk, which would take longer than all else: what
    a power failure leaves fails a PNG's checksums, and is made again.
    """
    turn = made.record.orientation
    turned = _turned(made.mask, _BACK.get(turn, turn))
    width, height = _size(*frame.file_size)
    pixels = turned[np.ix_(_places(height, CANVAS_PX), _places(width, CANVAS_PX))]
    text = PngInfo()
    record = made.record.model_copy(update={"pixels": _sum_of(pixels)})
    text.add_text(TEXT, record.model_dump_json())
    temporary = short_temporary(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        Image.fromarray(pixels).save(temporary, "PNG", pnginfo=text)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_made(path: Path) -> MadeMask | None:
    """Return what `write_made` wrote, or None if a file holds anything else: a user's own mask.

    Raises `UnusableImageError` for what is missing or damaged, see `open_mask`.
    """
    with open_mask(path) as opened:
        text = opened.info.get(TEXT) if opened.format == "PNG" and opened.mode == "1" else None
        if not isinstance(text, str):
            return None
        pixels = np.asarray(opened)
    try:
        record = Record.model_validate_json(text)
    except ValueError:
        return None
    if record.pixels != _sum_of(pixels):
        return None
    height, width = pixels.shape
    square = pixels[np.ix_(_places(CANVAS_PX, height), _places(CANVAS_PX, width))]
    return MadeMask(_turned(square, record.orientation), record)


def find_made(path: Path, image: ImageRef, *, key: str) -> MadeMask | None:
    """Return the mask of an image; None if its file is a user's own.

    Raises `UnusableImageError` saying why there is none that fits.
    """
    made = read_made(path)
    if made is None:
        return None
    if made.record.key != key:
        raise UnusableImageError(f"{path.name} comes from another method or other settings")
    if isinstance(image, np.ndarray) or not made.record.image.fits(image):
        raise UnusableImageError(f"the image has changed since {path.name} was made")
    return made


def _size(width: int, height: int) -> tuple[int, int]:
    """Return the (width, height) of the mask of an image: the shorter side is `CANVAS_PX`."""
    scale = min(CANVAS_PX / min(width, height), _LONGEST_PX / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _places(count: int, of: int) -> npt.NDArray[np.intp]:
    """Return which of ``of`` equal parts of a side hold the centres of ``count`` equal parts of it.

    From `CANVAS_PX` parts to as many or more, and back, each finds itself.
    """
    return (2 * np.arange(count) + 1) * of // (2 * count)


def _turned(mask: Mask, orientation: int) -> Mask:
    if orientation == 1:
        return mask
    return np.ascontiguousarray(TURNS[orientation](mask.view(np.uint8))).view(np.bool_)


def _sum_of(pixels: Mask) -> int:
    return zlib.crc32(np.packbits(pixels).tobytes(), zlib.crc32(repr(pixels.shape).encode()))
