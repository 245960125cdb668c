"""What a worker does with an image: decode it once, shrink, mask, encode."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from harl_fast.data.container.checksum import stored_sum
from harl_fast.data.container.fields import MODE_JPG, Bits, pack_mask, resize_mask
from harl_fast.data.container.stores import DEFAULT_STORE, Store
from preprocess.encode import encode
from preprocess.images.decode import Frame, decode_image, shrink
from preprocess.images.members import ImageRef
from preprocess.images.prints import NONE, file_print
from preprocess.images.reading import DEFAULT_READING, Reading, UnusableImageError
from preprocess.masks.registry import find_method
from preprocess.masks.runner import LazyImage, MaskRequest, MaskResult, find_masks
from preprocess.masks.spec import MethodSpec
from preprocess.passthrough import NotTakenError, take_jpeg
from preprocess.sources import Rejected


@dataclass(frozen=True)
class ConversionSettings:
    """How images are stored and masks are made."""

    max_resolution: int
    """Longest stored side in pixels."""
    quality: int
    """JPEG quality, 1 to 100."""
    mask_size: int
    mask_method: MethodSpec
    """Serves every image without a usable mask file."""
    store: Store = DEFAULT_STORE
    reading: Reading = DEFAULT_READING


class Task(NamedTuple):
    """One image to convert."""

    name: str
    label: int
    image: ImageRef
    mask: MaskRequest | None = None
    """None: the image's own, by a method."""
    position: int = 0
    """The image's place in its split's list."""


_NO_IMAGE: Bits = np.empty(0, np.uint8)


class Sample(NamedTuple):
    """One converted image, as small as it will be stored."""

    name: str
    label: int
    mode: int = MODE_JPG
    """How the picture is stored: a mode of `harl_fast.data.container.fields`."""
    image: Bits = _NO_IMAGE
    """(N,) uint8: its bytes."""
    height: int = 0
    width: int = 0
    mask: bytes = b""
    """`pack_mask` of the mask."""
    sums: tuple[int, int] = (0, 0)
    """`stored_sum` of image and mask."""
    stand_in: bool = False
    """The method found nothing sound and the centre ellipse serves."""
    mask_problem: str = ""
    """Why a fall-back's mask serves, and which; empty if none does."""
    edited: bool = False
    """Of `MaskResult`."""
    reencoded: str = ""
    """Why passthrough did not take the file's own bytes; empty if it did or was not asked for."""
    warning: str = ""
    """What is damaged in the file, where such files are kept."""
    remarks: tuple[str, ...] = ()
    """Of `Decoded`."""
    source_print: int = NONE
    """Fingerprint of its file, see `images.prints`."""
    image_bytes: int = 0
    """How many those are, also where ``image`` was left behind."""

    @property
    def parts(self) -> StoredBytes:
        """The bytes that go into a container."""
        return self.image, self.mask


StoredBytes = tuple[Bits, bytes]
"""A sample's image and its mask, as they are stored."""


def convert_and_keep(
    tasks: list[Task], settings: ConversionSettings, methods: tuple[MethodSpec, ...] = ()
) -> tuple[list[Sample | Rejected], list[StoredBytes]]:
    """Return `convert`'s results without their bytes, and these apart.

    They stay in the worker until it is told their places in the container.
    """
    results = convert(tasks, settings, methods)
    parts = [result.parts for result in results if isinstance(result, Sample)]
    told = [r._replace(image=_NO_IMAGE) if isinstance(r, Sample) else r for r in results]
    return told, parts


def convert(
    tasks: list[Task], settings: ConversionSettings, methods: tuple[MethodSpec, ...] = ()
) -> list[Sample | Rejected]:
    """Return each task's sample, or why there is none.

    methods: tried in turn for the masks, see `find_masks`; by default the settings' one. Networks
    get all images of a call at once.
    """
    cv2.setNumThreads(1)  # the pool has a process for every core
    methods = methods or (settings.mask_method,)
    looks = not find_method(methods[0].name).fixed
    drafts = [_draft(task, settings, looks=looks) for task in tasks]
    origins = [origin for _, origin in drafts if origin is not None]
    masks = find_masks(origins, methods)
    distinct = {id(found.mask): found.mask for found in masks}  # few, of a method that is fixed
    bits = {
        key: pack_mask(resize_mask(mask.view(np.uint8), size=settings.mask_size)).tobytes()
        for key, mask in distinct.items()
    }
    left = iter(masks)
    return [
        _masked(draft, next(left), bits) if isinstance(draft, Sample) else draft
        for draft, _ in drafts
    ]


def _draft(
    task: Task, settings: ConversionSettings, *, looks: bool
) -> tuple[Sample | Rejected, LazyImage | None]:
    """Return a task's sample without its mask, and where that is made from; or why there is none.

    looks: whether the mask method looks at pixels. A refused task has no origin.
    """
    side_px, reading = settings.max_resolution, settings.reading
    wanted = task.mask or MaskRequest(task.name, task.image)
    own = wanted.name == task.name
    looked_at = own and looks and wanted.file is None
    sample = Sample(name=task.name, label=task.label)
    rgb, frame = None, None
    if settings.store.kind == "passthrough":
        try:
            taken = take_jpeg(task.image, side_px=side_px, reading=reading, pixels=looked_at)
        except NotTakenError as error:
            sample = sample._replace(reencoded=str(error))
        else:
            rgb, frame = taken.rgb, Frame(1, (taken.width, taken.height))
            sample = sample._replace(
                image=np.frombuffer(taken.data, np.uint8),
                height=taken.height,
                width=taken.width,
                source_print=file_print(io.BytesIO(taken.data)),
            )
    if not sample.image.size:
        try:
            decoded = decode_image(task.image, side_px=side_px, reading=reading)
            rgb, frame = shrink(decoded.rgb, side_px=side_px), decoded.frame
            mode = settings.store.mode(task.position)
            image = encode(rgb, mode, quality=settings.quality, channels=reading.channels)
        except UnusableImageError as error:
            return Rejected(task.name, str(error)), None
        sample = sample._replace(
            mode=mode,
            image=np.frombuffer(image, np.uint8),
            height=rgb.shape[0],
            width=rgb.shape[1],
            warning=decoded.warning,
            remarks=decoded.remarks,
            source_print=decoded.source_print,
        )
    origin = LazyImage(
        wanted,
        side_px=side_px,
        reading=reading,
        frame=frame if own else None,
        rgb=rgb if looked_at else None,
    )
    return sample, origin


def _masked(sample: Sample, found: MaskResult, bits: dict[int, bytes]) -> Sample:
    mask = bits[id(found.mask)]
    return sample._replace(
        mask=mask,
        image_bytes=len(sample.image),
        sums=(stored_sum(sample.image.tobytes()), stored_sum(mask)),
        stand_in=found.stand_in,
        mask_problem=found.problem,
        edited=found.edited,
    )
