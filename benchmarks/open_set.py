"""C7: seconds and memory to open a set of containers for training, with simulated metadata.

The shards are whole containers but for their pictures: header, fields, metadata, allocation table,
checksums and names of every sample are real, the pictures' bytes are holes of sparse files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harl_fast.options import whole_number
from harl_fast.program import run_main

if TYPE_CHECKING:
    from harl_fast.data.container.manifest import Manifest

SHARD, EACH_BYTES, CLASSES, MASK_SIZE = 200_000, 50_000, 1000, 64
SOURCE, CREATED = "simulated", "2026-01-01T00:00:00+00:00"
_OPEN = """
import json, resource, sys, time
from pathlib import Path
from harl_fast.data.reader import OpenContainer
from harl_fast.data.container.manifest import read_manifest

def now():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024

read_manifest(Path(sys.argv[2]))  # what is imported or compiled once is the interpreter's
OpenContainer(Path(sys.argv[2]), sums=True)
before, start, cpu = now()[0], time.perf_counter(), time.process_time()
with open("/proc/self/clear_refs", "w") as stream:
    stream.write("5")  # the peak begins here
container = OpenContainer(Path(sys.argv[1]), sums=True)
seconds, cpu, (kept, peak) = time.perf_counter() - start, time.process_time() - cpu, now()
start = time.perf_counter()
name = container.name_of(container.manifest.count - 1)
print(json.dumps({
    "samples": container.manifest.count,
    "shards": len(container.index.files),
    "seconds": seconds,
    "cpu_seconds": cpu,
    "kept_mb": (kept - before) / 1e6,
    "peak_mb": (peak - before) / 1e6,
    "name_ms": 1e3 * (time.perf_counter() - start),
    "last": name,
}))
"""


def make_set(folder: Path, count: int) -> Path:
    """Write a set of ``count`` simulated samples as ``folder``/train and return its path."""
    # Imported late: programs that only measure need no writer.
    from harl_fast.data.container.manifest import merge_manifests, write_manifest

    path = folder / "train"
    path.mkdir(parents=True)
    shards = -(-count // SHARD)
    written = []
    for number in range(shards):
        name = f"{number:05d}-of-{shards:05d}.beton"
        first = number * SHARD
        written.append((name, _write_shard(path / name, first, min(SHARD, count - first))))
    whole = {"created": CREATED, "source": SOURCE, "first": 0, "count": count}
    write_manifest(path, merge_manifests(written, [whole]))
    return path


def _write_shard(path: Path, first: int, count: int) -> Manifest:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.types import ALLOC_TABLE_TYPE, HeaderType

    from harl_fast.data.container.fields import BitMaskField
    from harl_fast.data.container.integrity import (
        IMAGE,
        LABEL,
        MASK,
        METADATA_START,
        METADATA_TYPE,
        tables_sha256,
    )
    from harl_fast.data.container.manifest import (
        FIELDS,
        FORMAT_VERSION,
        Manifest,
        write_manifest,
        write_names,
        write_sums,
    )
    from preprocess.writer import StreamWriter

    rng = np.random.default_rng(first)
    fields = (RGBImageField(), BitMaskField(MASK_SIZE), IntField())
    writer = StreamWriter(str(path), dict(zip(FIELDS, fields, strict=True)))
    writer.num_samples = count
    writer.prepare()  # header and fields
    sizes = rng.integers(EACH_BYTES // 2, 3 * EACH_BYTES // 2, count, dtype=np.uint64)
    both = np.stack([sizes, np.full(count, MASK_SIZE**2 // 8, np.uint64)], axis=1).reshape(-1)
    start = METADATA_START + count * METADATA_TYPE.itemsize
    places = start + np.concatenate([[0], np.cumsum(both)[:-1]]).astype(np.uint64)
    table = np.zeros(2 * count, ALLOC_TABLE_TYPE)
    table["sample_id"], table["ptr"], table["size"] = np.arange(2 * count) // 2, places, both
    metadata = np.zeros(count, METADATA_TYPE)
    metadata[IMAGE]["height"] = rng.integers(200, 500, count)
    metadata[IMAGE]["width"] = rng.integers(200, 500, count)
    metadata[IMAGE]["data_ptr"], metadata[MASK]["data_ptr"] = places[::2], places[1::2]
    metadata[LABEL] = labels = rng.integers(0, CLASSES, count)
    end = int(places[-1] + both[-1])
    with open(path, "r+b") as stream:
        header = np.fromfile(path, HeaderType, count=1)
        header["num_samples"], header["alloc_table_ptr"] = count, end
        stream.write(header.tobytes())
        stream.seek(METADATA_START)
        stream.write(metadata.tobytes())
        stream.seek(end)
        stream.write(table.tobytes())
    names = [f"train/n{label:08d}/{first + row}.JPEG" for row, label in enumerate(labels.tolist())]
    return write_manifest(
        path,
        Manifest(
            format_version=FORMAT_VERSION,
            split="train",
            count=count,
            classes=[f"class{number}" for number in range(CLASSES)],
            class_counts=np.bincount(labels, minlength=CLASSES).tolist(),
            source=SOURCE,
            mask={"method": "simulated", "size": MASK_SIZE},
            store={"kind": "jpg"},
            skipped=0,
            beton_bytes=path.stat().st_size,
            beton_sha256=f"{first:064x}",
            names_sha256=write_names(path, names),
            created=CREATED,
            tool_versions={},
            tables_sha256=tables_sha256(path),
            sums_sha256=write_sums(
                path, rng.integers(1, 2**63, 2 * count, dtype=np.uint64).tolist()
            ),
        ),
    )


def measure(path: Path, small: Path) -> dict[str, float]:
    """Return seconds, CPU seconds, and MB kept and at the peak, of opening a set in a new process.

    small: another set, opened first, so that neither imports nor the first calls count.
    """
    command = [sys.executable, "-c", _OPEN, str(path), str(small)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(argv: list[str] | None = None) -> int:
    """Make the sets that are missing, measure, and print one JSON line per turn."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.open_set", description=__doc__)
    add, number = parser.add_argument, whole_number(1, 10**9)
    add("--folder", type=Path, default=Path("data/bench/open_set"), help="default %(default)s")
    add("--count", type=number, default=10_000_000, metavar="N", help="default %(default)s")
    add("--turns", type=number, default=5, metavar="N", help="default %(default)s")
    args = parser.parse_args(argv)
    sets = []
    for count in (args.count, 1000):
        folder = args.folder / str(count)
        if not (folder / "train.json").exists():  # written last
            start = time.monotonic()
            make_set(folder, count)
            print(f"made {count:,} samples in {time.monotonic() - start:.0f} s: {folder}")
        sets.append(folder / "train")
    for _ in range(args.turns):
        load = os.getloadavg()[0]
        print(json.dumps({**measure(*sets), "load": load}), flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
