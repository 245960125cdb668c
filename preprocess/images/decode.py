"""Image files of any kind to RGB pixels, by rule, or an error that says why not."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from harl_fast.data.container.integrity import MOST_PIXELS
from harl_fast.files import UnusualFileError, open_regular
from preprocess.images.arrays import Mask, Pixels
from preprocess.images.colours import deep_grey, is_plain_rgb, to_rgb
from preprocess.images.listing import TIFF_STARTS
from preprocess.images.members import FileRef, ImageRef, Page
from preprocess.images.palettes import keep_palette
from preprocess.images.png import Chunks, bare_grey, check_png, keep_low_bytes
from preprocess.images.prints import NONE, file_print, pixel_print
from preprocess.images.reading import (
    DEFAULT_READING,
    FIRST_PAGE,
    NO_COLOUR,
    NO_EXIF,
    UNNAMED_ALPHA,
    Reading,
    UnusableImageError,
)
from preprocess.images.soundness import is_lossy, load_judged
from preprocess.images.tiff import (
    TAG_BITS,
    TAG_ERRORS,
    TAG_FILL_ORDER,
    TAG_PHOTOMETRIC,
    TAG_SAMPLE_FORMAT,
    check_tiff,
    has_unnamed_alpha,
    pages,
    read_header,
)

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF")
"""The only decoders Pillow may pick, by content: a file named .jpg must not start Ghostscript."""

PIXEL_LIMIT = MOST_PIXELS
"""Larger images are refused by their header: decoding takes up to 10.2 bytes per pixel, Pillow's 4
and the 3 of RGB twice where they are turned upright, hence 2.1 GB per worker."""
PIXEL_LIMITS = {"WEBP": 120_000_000}
"""Other formats' limits: libwebp takes 17 bytes per pixel, as it is ready for animations."""

FILE_LIMIT = 1 << 30
"""Larger files are refused: `PIXEL_LIMIT` raw pixels of RGB take 0.6 GB."""

SIDE_LIMIT = 65_500
"""A JPEG's longest side (libjpeg's JPEG_MAX_DIMENSION); the container's fields end at 65,535."""

# `PIXEL_LIMIT` stands in for Pillow's own check, which would refuse some large photographs.
Image.MAX_IMAGE_PIXELS = None
# Pillow itself refuses sound pixels for a large text beside them.
PngImagePlugin.PngStream = Chunks  # type: ignore[misc]

_OF_THE_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN)
_NO_FILE = (errno.ENOENT, errno.ENAMETOOLONG)

ORIENTATION_TAG = 0x0112
TURNS: dict[int, Callable[[Any], Any]] = {  # as wide as OpenCV's own types
    2: lambda rows: cv2.flip(rows, 1),
    3: lambda rows: cv2.rotate(rows, cv2.ROTATE_180),
    4: lambda rows: cv2.flip(rows, 0),
    5: cv2.transpose,
    6: lambda rows: cv2.rotate(rows, cv2.ROTATE_90_CLOCKWISE),
    7: lambda rows: cv2.rotate(cv2.transpose(rows), cv2.ROTATE_180),
    8: lambda rows: cv2.rotate(rows, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
"""What makes the rows of each EXIF orientation upright (EXIF 2.32, tag 0x0112)."""


class Frame(NamedTuple):
    """How a file holds its image: what a mask made for that file needs."""

    orientation: int
    """EXIF orientation, 1 to 8."""
    file_size: tuple[int, int]
    """(width, height) as the file holds it, before it is turned upright."""


@dataclass(frozen=True)
class Decoded:
    """An upright image, and how the file held it."""

    rgb: Pixels
    """(H, W, 3) uint8, upright. A large JPEG comes reduced by 2, 4 or 8."""
    frame: Frame
    remarks: tuple[str, ...] = ()
    """What was done to the pixels or could not be, such as `reading.CONVERTED`."""
    warning: str = ""
    """What is damaged in an image that was kept all the same."""
    source_print: int = NONE
    """Fingerprint of the file, see `images.prints`."""


def open_file(image: FileRef) -> BinaryIO:
    """Open an image's bytes, wherever they lie; `UnusualFileError` beyond `FILE_LIMIT`."""
    if isinstance(image, Path):
        return open_regular(image, limit=FILE_LIMIT)
    return image.open(FILE_LIMIT)


@contextlib.contextmanager
def open_image(file: FileRef) -> Iterator[ImageFile.ImageFile]:
    """Yield an opened image within the limits, which has the bytes and checksums that it states.

    PNG states a checksum per chunk and one of its pixels, and deflated TIFF one per strip or tile;
    both state how many bytes their pixels take, and so does an uncompressed TIFF. JPEG and WebP are
    judged as they are decoded, see `soundness`. BMP, GIF, and JPEG, fax, LZW and PackBits inside
    TIFF have no checksum here: a missing end is noticed, and so is code that cannot be; other wrong
    pixels are not. What goes wrong, in loading too, is an `UnusableImageError`.
    """
    try:
        with warnings.catch_warnings(), open_file(file) as stream:
            warnings.simplefilter("ignore")  # remarks on metadata, which does not matter here
            with _identified(stream) as image:
                if isinstance(file, Page) and file.page:
                    image.seek(file.page)
                width, height = image.size
                limit = PIXEL_LIMITS.get(image.format or "", PIXEL_LIMIT)
                if width * height > limit:
                    raise UnusableImageError(
                        f"{width} x {height} pixels, more than {limit:,}: scale it down"
                    )
                start = stream.tell()
                if image.format == "PNG":
                    check_png(stream)
                elif image.format == "TIFF":
                    check_tiff(image, stream)
                elif image.format in ("BMP", "DIB", "GIF"):
                    keep_palette(image, stream)
                stream.seek(start)
                yield image
    except (UnusableImageError, MemoryError):
        raise
    except UnusualFileError as error:
        raise UnusableImageError(str(error)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
            raise  # says nothing of the file, and would be said of all that follow
        # Pillow raises nearly anything on damaged files, and one file must not end a conversion:
        # whatever it is stands in the report under the file's name.
        raise UnusableImageError(_reason(error)) from error


def _reason(error: Exception) -> str:
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno is not None:  # of the place, not of the file
        return words
    return f"{words}: copy it again if it is damaged, else save it as PNG or JPEG"


def _identified(stream: BinaryIO) -> ImageFile.ImageFile:
    try:
        return Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        head = read_header(stream)
        if head[:4] not in TIFF_STARTS:
            raise UnusableImageError(
                f"cannot identify image file: none of {', '.join(FORMATS)}, or its start is damaged"
            ) from None
    tags = TiffImagePlugin.ImageFileDirectory_v2(head)
    stream.seek(tags.next)
    tags.load(stream)
    if TAG_PHOTOMETRIC not in tags:
        raise UnusableImageError("cannot identify image file: a TIFF whose directory is damaged")
    raise UnusableImageError(
        f"a TIFF of {'/'.join(map(str, tags.get(TAG_BITS, (1,))))} bits, sample format "
        f"{tags.get(TAG_SAMPLE_FORMAT, (1,))[0]}, fill order {tags.get(TAG_FILL_ORDER, 1)}, "
        f"photometric {tags[TAG_PHOTOMETRIC]} cannot be read: save it as 8-bit RGB, or as 16-bit "
        f"grey where black is zero"
    )


def decode_image(image: ImageRef, *, side_px: int, reading: Reading = DEFAULT_READING) -> Decoded:
    """Return a file's first frame as upright RGB; `UnusableImageError` if it is unreadable.

    image: a file, a `Page` of it, or (H, W, 3) pixels, which are upright. With one channel all
    three of the result are the luma (BT.601), which is a grey's own level. side_px: the longest
    side wanted later; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as both
    sides stay at least this large (12 megapixel photos: 4 times as fast).
    """
    if isinstance(image, np.ndarray):
        decoded = Decoded(image, Frame(1, image.shape[1::-1]), source_print=pixel_print(image))
    else:
        with _still_there(image), open_image(image) as opened:
            assert opened.fp is not None
            source_print, more = file_print(opened.fp), False
            if opened.format == "TIFF" and not isinstance(image, Page):
                more = next(itertools.islice(pages(opened), 1, None), 0) > 0
            decoded = _decode(opened, side_px, reading)
        remarks = (FIRST_PAGE, *decoded.remarks) if more else decoded.remarks
        decoded = replace(decoded, remarks=remarks, source_print=source_print)
    if reading.channels == 3 or is_grey(decoded.rgb):
        return decoded
    return replace(decoded, rgb=to_luma(decoded.rgb), remarks=(*decoded.remarks, NO_COLOUR))


@contextlib.contextmanager
def _still_there(image: FileRef) -> Iterator[None]:
    """Raise an `OSError` of the system for an image that is gone with all that lay beside it.

    As when a disk is unmounted: else all of its images would be left out, one by one.
    """
    try:
        yield
    except UnusableImageError as error:
        file = image.file if isinstance(image, Page) else image
        holder = file.parent if isinstance(file, Path) else file.path
        gone = not holder.exists() or (holder.is_dir() and not any(holder.iterdir()))
        if isinstance(error.__cause__, FileNotFoundError) and gone:
            raise OSError(errno.ESTALE, "it is gone with all of its images", str(holder)) from error
        raise


def to_luma(rgb: Pixels) -> Pixels:
    """Return (H, W, 3) pixels whose channels all are the luma (BT.601) of those given."""
    return cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(
        np.uint8, copy=False
    )


def is_grey(rgb: Pixels) -> bool:
    """Return whether the three channels of (H, W, 3) pixels are the same."""
    red, green, blue = cv2.split(rgb)
    return np.array_equal(red, green) and np.array_equal(green, blue)


def _decode(opened: ImageFile.ImageFile, side_px: int, reading: Reading) -> Decoded:
    size, tiff = opened.size, opened.format == "TIFF"
    orientation, problem, unnamed = 1, "", ""
    remarks: tuple[str, ...] = ()
    if tiff:  # Pillow turns it upright in load() and forgets that it did
        orientation, problem = read_orientation(opened)
        size = opened.tag_v2[256], opened.tag_v2[257]  # type: ignore[attr-defined]
        unnamed = UNNAMED_ALPHA if has_unnamed_alpha(opened) else ""
    keep_low_bytes(opened)
    opened.draft(None, (side_px, side_px))
    loaded = load_judged(opened, size)
    if loaded.warning and not reading.keep_warned:
        raise UnusableImageError(loaded.warning)
    if loaded.pixels is None:
        opened.load()
    if not tiff:  # a PNG's may stand behind its pixels: not before they are known to be sound
        orientation, problem = read_orientation(opened)
    if loaded.pixels is not None and is_plain_rgb(opened, reading):
        rgb = loaded.pixels  # Pillow's image would cost two copies, 0.3 ms per photo
    else:
        rgb, remarks = to_rgb(loaded.image(), reading)
    if not tiff and orientation != 1:
        rgb = TURNS[orientation](rgb)
    remarks = (*filter(None, (problem, unnamed)), *remarks)
    return Decoded(rgb, Frame(orientation, size), remarks, loaded.warning)


def read_orientation(image: Image.Image) -> tuple[int, str]:
    """Return a loaded image's EXIF orientation, 1 to 8, and a remark if its EXIF is broken.

    A broken EXIF block around sound pixels means upright. An opened TIFF or JPEG will do.
    """
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except TAG_ERRORS:
        return 1, NO_EXIF
    return (int(value) if value in TURNS else 1), ""


def stored_size(height: int, width: int, *, side_px: int) -> tuple[int, int]:
    """Return the (height, width) at which an image is stored: longest side at most ``side_px``.

    FFCV's rule for ``max_resolution`` (ffcv.fields.rgb_image.resizer), but no side goes to zero.
    """
    ratio = side_px / max(height, width)
    if ratio >= 1:
        return height, width
    return max(1, int(ratio * height)), max(1, int(ratio * width))


def shrink(rgb: Pixels, *, side_px: int) -> Pixels:
    """Return (H, W, 3) pixels at their `stored_size`, by area averaging."""
    height, width = stored_size(rgb.shape[0], rgb.shape[1], side_px=side_px)
    if max(height, width) > SIDE_LIMIT:
        raise UnusableImageError(f"a side of {max(height, width)} px, a JPEG ends at {SIDE_LIMIT}")
    if (height, width) == rgb.shape[:2]:
        return rgb
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA).astype(
        np.uint8, copy=False
    )


@contextlib.contextmanager
def open_mask(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Yield an opened mask file as `open_image` does.

    One that is there, but that the system does not give, is an `OSError`: as it may be a user's
    own, none takes its place like that of one that is missing or damaged.
    """
    try:
        with open_image(path) as opened:
            yield opened
    except UnusableImageError as error:
        cause = error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        if number == errno.ENOENT and path.is_symlink():
            raise OSError(number, "a link that leads to nothing", str(path)) from error
        if number is not None and number not in _NO_FILE:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def load_mask(path: Path, *, lossy: bool) -> Image.Image:
    """Return a mask file's pixels as Pillow holds them.

    lossy: whether one coded with loss will do, whose background is not quite 0. Raises
    `UnusableImageError` if not, for any damage, and for an EXIF orientation other than 1; see
    `open_mask` as well.
    """
    with open_mask(path) as opened:
        refused = not lossy and is_lossy(opened)
        # As in `_decode`: before a TIFF is loaded, and after any other.
        own = read_orientation(opened)[0] if opened.format == "TIFF" else 0
        loaded = load_judged(opened, opened.size)
        if loaded.warning:
            raise UnusableImageError(loaded.warning)
        if refused:
            raise UnusableImageError(
                f"a {opened.format} coded with loss, whose background is not quite 0: save the "
                f"mask as PNG"
            )
        own = own or read_orientation(opened)[0]
        if own != 1:
            raise UnusableImageError(
                f"a mask with EXIF orientation {own}: save its pixels upright, without that tag"
            )
        return loaded.image()


def read_mask(path: Path, frame: Frame) -> Mask:
    """Return a mask file as (H, W) bool in the frame of the upright image.

    frame: of its image. Non-zero is foreground. A mask with the proportions of the file as stored
    gets the image's EXIF turn, one with those of the upright image stays; else it is an error.
    Pixels with a palette count by their index. Raises `UnusableImageError`, see `load_mask`.
    """
    pixels = _bare_mask(path)
    if pixels is None:
        image = load_mask(path, lossy=False)
        if image.mode not in ("1", "L", "P", "RGB", "I;16") or (
            image.format == "TIFF" and deep_grey(image) is not None
        ):
            raise UnusableImageError(f"a mask of mode {image.mode}: save 8-bit grey, 0 = none")
        pixels = np.asarray(image)
    values = pixels != 0
    return in_frame(values if values.ndim == 2 else values.any(axis=2), frame)


def in_frame(mask: Mask, frame: Frame) -> Mask:
    """Return an (H, W) mask, which lies as its image's file or upright, as the upright one.

    Raises `UnusableImageError` for other proportions.
    """
    size, (orientation, file_size) = mask.shape[1::-1], frame
    if _same_shape(size, file_size):
        return TURNS[orientation](mask.view(np.uint8)).view(np.bool_) if orientation > 1 else mask
    if orientation >= 5 and _same_shape(size, file_size[::-1]):
        return mask
    raise UnusableImageError(
        f"the mask has {size[0]} x {size[1]} pixels, its image {file_size[0]} x {file_size[1]}"
    )


def _bare_mask(path: Path) -> Pixels | None:
    """Return the (H, W) pixels of a mask as most are, see `bare_grey`; None for any other file."""
    try:
        with open_file(path) as stream:
            return bare_grey(stream, most=PIXEL_LIMIT)
    except OSError:  # said when it is opened as any other
        return None


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two sizes agree up to a scale, to one pixel of the smaller."""
    scale = max(size) / max(other)
    slack = max(1.0, scale)
    return all(abs(a - b * scale) <= slack for a, b in zip(size, other, strict=True))
