"""Which store suits a set: sizes, the rates at which a loader reads, measured costs, memory."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from harl_fast.data.container.fields import MODE_NAMES
from harl_fast.data.container.manifest import Manifest
from harl_fast.data.container.stores import Store
from harl_fast.data.loader import BetonLoader
from harl_fast.data.order import spread
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.errors import DataError
from harl_fast.host import CACHE_SHARE, available_bytes
from preprocess.build import build
from preprocess.convert import ConversionSettings, Sample, Task, convert
from preprocess.masks.registry import parse_spec
from preprocess.places import LocalPlace
from preprocess.sources import Source, Split

RATES = (6_000, 10_000)
"""Images per second that eight A100 train on, eager and compiled."""
PIXEL_BYTES = {"raw": 3.0, "yuv420": 1.5}
LEAST_COUNT = 20_000
"""Smaller sets are not measured: their conversion takes seconds, and so would that."""
SAMPLE, BATCH, PASSES = 128, 32, 3
"""Images measured, images per batch, and passes of which the fastest counts."""
MOST_ENCODED, LEAST_ENCODED, ENCODED_SHARE = 64, 8, 0.002
"""Images by which the size of JPEGs is estimated where others are stored: so small a share of a
set that one core takes no time for them beside its conversion by many, even by passthrough."""


def advise(source: Source, settings: ConversionSettings, manifest: Manifest) -> Iterator[str]:
    """Yield the lines about the stores that follow a conversion.

    manifest: of the training split, which is read again and again; a validation split is not.
    """
    facts = manifest.store
    stored = sum(mode["bytes"] for mode in facts["modes"].values())
    each = stored / manifest.count
    rates = ", ".join(f"{rate:,} images/s read {rate * each / 1e9:,.2f} GB/s" for rate in RATES)
    yield f"store {facts['kind']}: {each / 1e3:,.1f} kB per image; {rates}"
    split = source.splits[manifest.split]
    sizes = {name: per_pixel * facts["pixels"] for name, per_pixel in PIXEL_BYTES.items()}
    if facts["kind"] == "jpg":
        sizes["jpg"] = stored
    elif (per_pixel := _jpg_bytes_per_pixel(split, settings)) is not None:
        sizes["jpg"] = per_pixel * facts["pixels"]
    listed = ", ".join(
        f"{name} {sizes[name] / 1e9:,.2f} GB" for name in MODE_NAMES if name in sizes
    )
    yield f"  the images as {listed} (estimated from their pixels, except for the store written)"
    costs: dict[str, float] = {}
    if manifest.count >= LEAST_COUNT:
        yield "  measuring the stores (the first time on a machine compiles the loader: minutes)"
        costs = measure(source, settings, manifest.split)
        shown = ", ".join(f"{name} {cost:,.0f}" for name, cost in costs.items()) or "no store"
        yield (
            f"  microseconds per image and core for two 224 px views, measured just now through "
            f"the loader on {SAMPLE} images in memory: {shown}"
        )
    yield f"  {recommend(sizes, costs, available_bytes())}"


def recommend(sizes: Mapping[str, float], costs: Mapping[str, float], memory: int | None) -> str:
    """Return one sentence on which store is favoured, and why.

    sizes: bytes of the set in each store. costs: microseconds per image; stores not measured are
    absent. memory: bytes available, None if unknown. An uncompressed store is worth its size only
    while the file stays in the page cache, since disks deliver less than it is read at.
    """
    if memory is None:
        return "no advice: this system does not say how much memory is available"
    fits = {name for name, size in sizes.items() if size <= CACHE_SHARE * memory}
    room = f"{CACHE_SHARE:.0%} of this machine's {memory / 1e9:,.1f} GB of available memory"
    fast = {name: cost for name, cost in costs.items() if name in fits}
    if not fits & PIXEL_BYTES.keys():
        return f"favoured here: jpg; uncompressed, the images do not fit in {room}"
    if "jpg" not in costs or not fast.keys() & PIXEL_BYTES.keys():
        names = " and ".join(name for name in PIXEL_BYTES if name in fits)
        return f"{names} would stay in {room}; whether it pays was not measured on this small set"
    best = min(fast, key=lambda name: fast[name])
    if best not in PIXEL_BYTES or costs["jpg"] <= fast[best]:
        return "favoured here: jpg; no uncompressed store was faster in this measurement"
    gain = costs["jpg"] / fast[best]
    return f"favoured here: {best}; {gain:.1f} times as fast as jpg, and it fits in {room}"


def measure(source: Source, settings: ConversionSettings, split: str) -> dict[str, float]:
    """Return what an image costs the loader in each store: microseconds on one core.

    Writes small containers of evenly spaced images into a temporary folder and reads them with the
    training loader. A store that cannot be measured is left out: the conversion is done by then.
    """
    some = _subset(source.splits[split], SAMPLE)
    part = Source(source.name, source.classes, {split: some})
    costs = {}
    for name in MODE_NAMES:
        plain = replace(settings, store=Store(name), mask_method=parse_spec("full"))
        # The pool's progress line and summary belong to the real conversion only.
        quiet = contextlib.redirect_stdout(io.StringIO())
        silent = contextlib.redirect_stderr(io.StringIO())
        with contextlib.suppress(DataError, OSError), tempfile.TemporaryDirectory() as folder:
            with quiet, silent:
                build(part, LocalPlace(Path(folder)), plain, masks=None, workers=1)
            costs[name] = _loader_cost_us(Path(folder) / f"{split}.beton")
    return costs


def _loader_cost_us(path: Path) -> float:
    views = [ViewGeometry(size_px=224, cells=7) for _ in range(2)]
    with contextlib.closing(
        BetonLoader(path, views=views, batch_global=BATCH, batch_micro=BATCH, workers=1)
    ) as loader:
        seconds = []
        for _ in range(1 + PASSES):
            start = time.perf_counter()
            count = sum(len(batch.ids) for batch in loader)
            seconds.append((time.perf_counter() - start) / count)
    return 1e6 * min(seconds[1:])


def _jpg_bytes_per_pixel(split: Split, settings: ConversionSettings) -> float | None:
    plain = replace(settings, store=Store("jpg"), mask_method=parse_spec("full"))
    count = min(max(round(ENCODED_SHARE * len(split.names)), LEAST_ENCODED), MOST_ENCODED)
    some = _subset(split, count)
    tasks = [Task(name, 0, some.image(row)) for row, name in enumerate(some.names)]
    samples = [result for result in convert(tasks, plain) if isinstance(result, Sample)]
    pixels = sum(sample.height * sample.width for sample in samples)
    return sum(len(sample.image) for sample in samples) / pixels if pixels else None


def _subset(split: Split, count: int) -> Split:
    """Return at most ``count`` images spread evenly over a split."""
    return split.take(spread(len(split.names), count).tolist())
