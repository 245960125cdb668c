"""What a worker does with an image: decode it once, shrink, mask, encode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2

from harl_fast.data.container.fields import MODE_JPG, pack_mask, resize_mask
from preprocess.encode import DEFAULT_STORE, Store, encode
from preprocess.images import decode_image, shrink
from preprocess.masks.runner import LazyImage, MaskRequest, MaskResult, find_masks
from preprocess.masks.spec import MethodSpec
from preprocess.passthrough import NotTakenError, take_jpeg
from preprocess.reading import DEFAULT_READING, Reading, UnusableImageError
from preprocess.sources import Rejected
from preprocess.sources.members import ImageRef


@dataclass(frozen=True)
class Settings:
    """How images are stored and masks are made."""

    max_resolution: int
    """Longest stored side in pixels."""
    quality: int
    """JPEG quality, 1 to 100."""
    mask_size: int
    mask_method: MethodSpec
    """Serves every image without a usable mask file or cached mask."""
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


class Sample(NamedTuple):
    """One converted image, as small as it will be stored."""

    name: str
    label: int
    mode: int
    """How the picture is stored: a mode of `harl_fast.data.container.fields`."""
    image: bytes
    height: int
    width: int
    mask: bytes = b""
    """`pack_mask` of the mask."""
    stand_in: bool = False
    """The method found nothing sound and the centre ellipse serves."""
    mask_problem: str = ""
    """Why a fall-back's mask serves, and which; empty if none does."""
    reencoded: str = ""
    """Why passthrough did not take the file's own bytes; empty if it did or was not asked for."""
    warning: str = ""
    """What is damaged in the file, where such files are kept."""
    remarks: tuple[str, ...] = ()
    """Of `Decoded`."""


def convert(
    tasks: list[Task], settings: Settings, methods: tuple[MethodSpec, ...] = ()
) -> list[Sample | Rejected]:
    """Return each task's sample, or why there is none.

    methods: tried in turn for the masks, see `find_masks`; by default the settings' one. Networks
    get all images of a call at once.
    """
    cv2.setNumThreads(1)  # the pool has a process for every core
    drafts = [_draft(task, settings) for task in tasks]
    origins = [origin for _, origin in drafts if origin is not None]
    masks = iter(find_masks(origins, methods or (settings.mask_method,)))
    return [
        _masked(draft, next(masks), settings) if isinstance(draft, Sample) else draft
        for draft, _ in drafts
    ]


def _draft(task: Task, settings: Settings) -> tuple[Sample | Rejected, LazyImage | None]:
    """Return a task's sample without its mask, and where that is made from; or why there is none.

    A refused task has no origin.
    """
    side_px, taken, refusal = settings.max_resolution, None, ""
    if settings.store.kind == "passthrough":
        try:
            taken = take_jpeg(task.image, side_px=side_px, icc=settings.reading.icc)
        except NotTakenError as error:
            refusal = str(error)
    try:
        source = task.image if taken is None else taken.rgb
        decoded = decode_image(source, side_px=side_px, reading=settings.reading)
        rgb = shrink(decoded.rgb, side_px=side_px)
        mode = settings.store.mode(task.position) if taken is None else MODE_JPG
        image = encode(rgb, mode, quality=settings.quality) if taken is None else taken.data
    except UnusableImageError as error:
        return Rejected(task.name, str(error)), None
    wanted = task.mask or MaskRequest(task.name, task.image)
    own = wanted.name == task.name
    origin = LazyImage(
        wanted,
        side_px=side_px,
        reading=settings.reading,
        frame=decoded.frame if own else None,
        rgb=rgb if own else None,
    )
    sample = Sample(
        name=task.name,
        label=task.label,
        mode=mode,
        image=image,
        height=rgb.shape[0],
        width=rgb.shape[1],
        reencoded=refusal,
        warning=decoded.warning,
        remarks=decoded.remarks,
    )
    return sample, origin


def _masked(sample: Sample, found: MaskResult, settings: Settings) -> Sample:
    mask = pack_mask(resize_mask(found.mask, size=settings.mask_size)).tobytes()
    return sample._replace(mask=mask, stand_in=found.stand_in, mask_problem=found.problem)
