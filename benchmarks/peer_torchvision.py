"""torchvision in a DataLoader: pictures through PIL, and v2 on uint8 tensors.

Both: ImageFolder's files, one decode, two views with BYOL's photometrics, float32 normalised, and
the mask carried through each view's box and flip to 7 x 7 cells. Policy values come from ours.
"""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import io, transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as pil_ops
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as ops

from harl_fast.config import DataConfig, ViewConfig
from harl_fast.supervision import end_with_parent

CELLS = 7
POLICY = DataConfig()
Views = tuple[Tensor, Tensor, Tensor, Tensor, int]


def mask_file(image: str) -> Path:
    """Return the mask's file of an image of the input set."""
    path = Path(image)
    return path.parents[3] / "masks" / path.parent.name / f"{path.stem}.png"


def _box(policy: ViewConfig, image: Any) -> tuple[int, int, int, int]:
    box: tuple[int, int, int, int] = transforms.RandomResizedCrop.get_params(
        image, list(policy.scale), list(policy.ratio)
    )
    return box


class _PilBlur:
    """PIL's own Gaussian blur, as BYOL, MoCo and DINO code uses it: torchvision's is slower."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(self.low, self.high)))


class _SeparableBlur:
    """v2's blur as two passes of one dimension: the same result with 34 instead of 289 taps."""

    def __init__(self, taps: int, low: float, high: float) -> None:
        self.taps, self.low, self.high = taps, low, high

    def __call__(self, image: Tensor) -> Tensor:
        sigma = random.uniform(self.low, self.high)
        image = ops.to_dtype(image, torch.float32)
        across = ops.gaussian_blur(image, [self.taps, 1], [sigma, sigma])
        both = ops.gaussian_blur(across, [1, self.taps], [sigma, sigma])
        return ops.to_dtype(both.round_(), torch.uint8)


def pil_colours(policy: ViewConfig) -> Callable[[Image.Image], Tensor]:
    """Return BYOL's photometrics on a PIL view, then float32 normalised."""
    p = policy
    jitter = transforms.ColorJitter(p.brightness, p.contrast, p.saturation, p.hue)
    steps = [transforms.RandomApply([jitter], p.jitter_p), transforms.RandomGrayscale(p.gray_p)]
    steps += [transforms.RandomApply([_PilBlur(*p.blur_sigma)], p.blur_p)] if p.blur_p else []
    steps += [transforms.RandomSolarize(128, p.solarize_p)] if p.solarize_p else []
    last = [transforms.ToTensor(), transforms.Normalize(POLICY.mean, POLICY.std, inplace=True)]
    whole: Callable[[Image.Image], Tensor] = transforms.Compose([*steps, *last])
    return whole


def v2_colours(policy: ViewConfig, *, separable: bool) -> Callable[[Tensor], Tensor]:
    """Return BYOL's photometrics on a uint8 view, then float32 normalised.

    Blur reaches as far as ours: four standard deviations of the widest.
    """
    p = policy
    taps = 2 * math.ceil(4.0 * p.blur_sigma[1]) + 1
    blur: Any = v2.GaussianBlur(taps, p.blur_sigma)
    if separable:
        blur = v2.Lambda(_SeparableBlur(taps, *p.blur_sigma))
    jitter = v2.ColorJitter(p.brightness, p.contrast, p.saturation, p.hue)
    steps = [v2.RandomApply([jitter], p.jitter_p), v2.RandomGrayscale(p.gray_p)]
    steps += [v2.RandomApply([blur], p.blur_p)] if p.blur_p else []
    steps += [v2.RandomSolarize(128, p.solarize_p)] if p.solarize_p else []
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(POLICY.mean, POLICY.std, True)]
    whole: Callable[[Tensor], Tensor] = v2.Compose([*steps, *last])
    return whole


class PilViews(Dataset[Views]):
    """Two coloured views and their mask cells of each file, through PIL."""

    def __init__(self, root: str) -> None:
        self.folder = ImageFolder(root)
        self.colours = [pil_colours(policy) for policy in POLICY.views]

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Views:
        path, label = self.folder.samples[index]
        image = self.folder.loader(path)
        mask = Image.open(mask_file(path)).convert("L")
        out = []
        for policy, colours in zip(POLICY.views, self.colours, strict=True):
            top, left, height, width = _box(policy, image)
            side = [policy.size_px, policy.size_px]
            view = pil_ops.resized_crop(image, top, left, height, width, side)
            across, down = mask.width / image.width, mask.height / image.height
            box = (left * across, top * down, (left + width) * across, (top + height) * down)
            # One exact area reduction: cheaper than a NEAREST crop of 224 and its mean.
            cells = mask.resize((CELLS, CELLS), Image.Resampling.BOX, box=box)
            if random.random() < policy.flip_p:
                view, cells = pil_ops.hflip(view), pil_ops.hflip(cells)
            out.append((colours(view), pil_ops.to_tensor(cells)[0]))
        return out[0][0], out[1][0], out[0][1], out[1][1], label


class V2Views(Dataset[Views]):
    """Two coloured views and their mask cells of each file, through uint8 tensors."""

    def __init__(self, root: str, *, separable: bool) -> None:
        self.folder = ImageFolder(root)
        self.colours = [v2_colours(policy, separable=separable) for policy in POLICY.views]

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Views:
        path, label = self.folder.samples[index]
        image = io.decode_jpeg(io.read_file(path), mode=io.ImageReadMode.RGB)
        mask = io.decode_png(io.read_file(str(mask_file(path))))
        down, across = mask.shape[1] / image.shape[1], mask.shape[2] / image.shape[2]
        out = []
        for policy, colours in zip(POLICY.views, self.colours, strict=True):
            top, left, height, width = _box(policy, image)
            side = [policy.size_px, policy.size_px]
            view = ops.resized_crop(image, top, left, height, width, side, antialias=True)
            rows = slice(
                round(top * down), max(round(top * down) + 1, round((top + height) * down))
            )
            columns = slice(
                round(left * across), max(round(left * across) + 1, round((left + width) * across))
            )
            part = mask[:, rows, columns].float().div_(255.0)
            cells = torch.nn.functional.adaptive_avg_pool2d(part, CELLS)[0]
            if random.random() < policy.flip_p:
                view, cells = ops.horizontal_flip(view), cells.flip(-1)
            out.append((colours(view), cells))
        return out[0][0], out[1][0], out[0][1], out[1][1], label


def _start_worker(_: int) -> None:
    end_with_parent(signal.SIGKILL)


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """Yield (samples, batch) for ever; (0, None) opens each of the long epochs."""
    root = settings["images"]
    kind = settings["kind"]
    data: Dataset[Views] = (
        PilViews(root) if kind == "pil" else V2Views(root, separable=kind != "v2")
    )
    # One long epoch of permutations: starting an epoch costs a DataLoader more than a real one of
    # a million pictures would show.
    sampler = RandomSampler(data, num_samples=50 * len(data))  # type: ignore[arg-type]
    loader = DataLoader(
        data,
        batch_size=settings["batch"],
        sampler=sampler,
        num_workers=settings["threads"],
        persistent_workers=True,
        drop_last=True,
        worker_init_fn=_start_worker,
    )
    while True:
        yield 0, None
        for batch in loader:
            yield len(batch[0]), batch
