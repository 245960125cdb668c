"""Reads containers whole and names what is damaged: `python -m preprocess.verify FILE.beton...`.

A set is judged shard by shard: whatever is wrong with one, all are read.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harl_fast.errors import DataError, one_line
from harl_fast.files import Progress, check_output, format_seconds, write_json
from harl_fast.host import usable_cores
from harl_fast.options import Parser, whole_number
from harl_fast.pool import ordered_map
from harl_fast.program import head, run_main

SOUND, DAMAGED, REFUSED = 0, 1, 2
"""Exit codes: as written; some bytes are not; it cannot be judged (no manifest, cut, ...)."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = Parser(
        prog="python -m preprocess.verify",
        description="Compare containers with the checksums in their manifests. If one differs, or "
        "with --deep, decode every sample and name those that are damaged.",
        epilog=f"exit code: {SOUND} all is as written, {DAMAGED} something is damaged, {REFUSED} a "
        f"container cannot be judged (missing, cut short, no manifest)",
    )
    about = "or the folder of a set"
    parser.add_argument("betons", nargs="+", type=Path, metavar="FILE.beton", help=about)
    parser.add_argument("--deep", action="store_true", help="decode every sample in any case")
    parser.add_argument("--report", type=Path, metavar="OUT.json", help="write all findings there")
    kind, about = whole_number(1, 1024), "processes that decode"
    parser.add_argument("--workers", type=kind, default=usable_cores(), metavar="N", help=about)
    return parser.parse_args(argv)


with head(__name__, parse):
    import numpy as np
    import numpy.typing as npt

    from harl_fast.data.container.checksum import Kind, stored_sum
    from harl_fast.data.container.digest import has_digest
    from harl_fast.data.container.fields import open_reader
    from harl_fast.data.container.index import check_container, sizes_at
    from harl_fast.data.container.integrity import IMAGE, MASK
    from harl_fast.data.container.manifest import Manifest, read_manifest, read_shard, read_sums
    from harl_fast.data.container.names import read_names
    from harl_fast.data.reader import stored_pixels
    from harl_fast.jit import require_compiler
    from harl_fast.runfiles import check_apart
    from preprocess.prints import read_prints

CHUNK = 64
"""Samples that a worker takes at a time: about 0.1 s of decoding."""
NAMED = 10
"""Damaged samples that are printed; the report lists all."""

ROW = np.dtype(
    [
        ("id", "i8"),
        ("mode", "i4"),
        ("height", "i4"),
        ("width", "i4"),
        ("place", "u8", 2),  # of the image and of the mask, as all that follow
        ("size", "u8", 2),
        ("sum", "u8", 2),
    ]
)
"""What a worker must know about a sample."""


@dataclass(frozen=True)
class Finding:
    """One damaged sample."""

    id: int
    name: str
    problems: list[str]


@dataclass
class Verdict:
    """What is known about a container after reading it."""

    file: str
    samples: int = 0
    refused: str = ""
    """Why the container could not be judged."""
    sealed: bool = True
    """The manifest has a checksum of itself."""
    checksum: str = "not compared"
    """Of the whole file: same or differs."""
    decoded: bool = False
    """Every sample was decoded."""
    sums: bool = False
    """Every sample's bytes were compared with the checksum taken when it was written."""
    damaged: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def code(self) -> int:
        """The exit code: `SOUND`, `DAMAGED` or `REFUSED`."""
        if self.refused:
            return REFUSED
        return DAMAGED if self.damaged or self.checksum == "differs" else SOUND


def verdicts(path: Path, *, deep: bool, workers: int) -> Iterator[Verdict]:
    """Yield the `verify` of a container, or of each container of a set, whose ids run on."""
    if not path.is_dir():
        yield verify(path, deep=deep, workers=workers)
        return
    first = 0
    try:
        manifest = read_manifest(path)
    except DataError as error:
        yield Verdict(str(path), refused=str(error))
        return
    for shard in manifest.shards:
        try:
            read_shard(path, shard)
        except DataError as error:
            yield Verdict(str(path / shard.file), refused=str(error))
        else:
            yield verify(path / shard.file, deep=deep, workers=workers, first=first)
        first += shard.count


def verify(beton: Path, *, deep: bool, workers: int, first: int = 0) -> Verdict:
    """Return what differs from the container's manifest; first: id of its first sample.

    Compares the checks of opening and the whole file's checksum. If that differs, or if ``deep``,
    every sample is decoded and compared with its own checksum, where one was written.
    """
    start, verdict = time.monotonic(), Verdict(str(beton))
    try:
        manifest = read_manifest(beton)
        verdict.samples, verdict.sealed = manifest.count, bool(manifest.manifest_sha256)
        check_container(beton, manifest)
        names = read_names(beton)
        sums = read_sums(beton, manifest)
        read_prints(beton, manifest)
        size = beton.stat().st_size >> 20
        with Progress(size, label=f"reading {beton.name}", unit="MB") as progress:
            same = has_digest(beton, manifest.beton_sha256, progress=progress)
        verdict.checksum = "same" if same else "differs"
        if deep or not same:
            rows = _rows(beton, manifest, sums)
            verdict.decoded, verdict.sums = True, sums is not None
            kind = None if sums is None else sums.dtype
            for sample, problems in _damaged(beton, manifest, rows, kind, workers):
                verdict.damaged.append(Finding(first + sample, names[sample], problems))
    except DataError as error:
        verdict.refused = str(error)
    except OSError as error:
        verdict.refused = f"{beton} cannot be read: {error.strerror or error}"
    verdict.seconds = time.monotonic() - start
    return verdict


def _rows(
    beton: Path, manifest: Manifest, sums: npt.NDArray[np.uint64 | np.uint32] | None
) -> npt.NDArray[np.void]:
    """Return a `ROW` per sample."""
    reader = open_reader(beton)
    rows = np.zeros(manifest.count, ROW)
    rows["id"] = np.arange(manifest.count)
    for name in ("mode", "height", "width"):
        rows[name] = reader.metadata[IMAGE][name]
    places = [reader.metadata[column]["data_ptr"] for column in (IMAGE, MASK)]
    rows["place"] = np.stack(places, axis=1)
    rows["size"] = np.stack(sizes_at(reader.alloc_table, places), axis=1)
    if sums is not None:
        rows["sum"] = sums
    return rows


def _damaged(
    beton: Path, manifest: Manifest, rows: npt.NDArray[np.void], kind: Kind | None, workers: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield (sample id, problems) of every damaged sample, in order."""
    size = int(open_reader(beton).handlers["mask"].size)
    judge = functools.partial(judge_rows, beton=beton, mask_bytes=size * size // 8, kind=kind)
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    if workers > 1 and len(chunks) > 1:
        found = ordered_map(
            judge,
            chunks,
            workers=min(workers, len(chunks)),
            describe=lambda chunk: f"samples {chunk['id'][0]} to {chunk['id'][-1]} of {beton}",
        )
    else:
        found = (judge(chunk) for chunk in chunks)
    progress = Progress(manifest.count, label=f"decoding {beton.name}")
    with contextlib.closing(found), progress:
        for chunk, bad in zip(chunks, found, strict=True):
            yield from bad
            progress.advance(len(chunk))


def judge_rows(
    rows: npt.NDArray[np.void], *, beton: Path, mask_bytes: int, kind: Kind | None
) -> list[tuple[int, list[str]]]:
    """Return (id, problems) of the damaged samples among ``rows``.

    kind: dtype of the sums, see `stored_sum`, or None if there are none.

    Reads with pread, not through a mapping: a failing disk or a cut file is then a plain error.
    """
    bad = []
    handle = os.open(beton, os.O_RDONLY)
    try:
        for row in rows:
            image, mask = (
                os.pread(handle, int(row["size"][part]), int(row["place"][part]))
                for part in range(2)
            )
            problems = _problems(row, image, mask, mask_bytes=mask_bytes, kind=kind)
            if problems:
                bad.append((int(row["id"]), problems))
    finally:
        os.close(handle)
    return bad


def _problems(
    row: np.void, image: bytes, mask: bytes, *, mask_bytes: int, kind: Kind | None
) -> list[str]:
    mode, height, width = (int(row[name]) for name in ("mode", "height", "width"))
    pixels = stored_pixels(mode, np.frombuffer(image, np.uint8), height, width)
    same = [
        kind is None or stored_sum(part, kind) == int(known)
        for part, known in zip((image, mask), row["sum"], strict=True)
    ]
    checks = {
        "image does not decode": pixels is None,
        "mask has the wrong size": len(mask) != mask_bytes,
        "image bytes changed": not same[0],
        "mask bytes changed": not same[1],
    }
    return [problem for problem, found in checks.items() if found]


def _print(verdict: Verdict) -> None:
    file = one_line(verdict.file)
    if verdict.refused:
        print(f"{file}: refused: {one_line(verdict.refused)}")
        return
    if not verdict.sealed:
        print(
            f"note: {file}: its manifest has no checksum of itself, as those from before there was "
            f"one: an edit of its class names or sizes would not be noticed"
        )
    took = f"({format_seconds(verdict.seconds)})"
    if verdict.code == SOUND:
        done = ", every sample decoded" if verdict.decoded else ""
        print(f"{file}: all {verdict.samples:,} samples are as written{done} {took}")
        return
    print(f"{file}: {len(verdict.damaged):,} of {verdict.samples:,} samples are damaged {took}")
    for item in verdict.damaged[:NAMED]:
        print(f"  sample {item.id} ({one_line(item.name)}): {', '.join(item.problems)}")
    if len(verdict.damaged) > NAMED:
        print(f"  and {len(verdict.damaged) - NAMED:,} more: --report FILE lists them all")
    if verdict.checksum == "differs" and not verdict.damaged:
        where = "outside the samples" if verdict.sums else "where decoding does not notice it"
        print(f"  its checksum differs from the manifest's: some bytes changed {where}")
    print("  copy it again, or write it again with `make beton`")


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    args = parse(argv)
    require_compiler()
    if args.report:
        check_output(args.report, option="--report", inputs=args.betons)
        check_apart(args.report, option="--report")
    found = list[Verdict]()
    for beton in args.betons:
        for one in verdicts(beton, deep=args.deep, workers=args.workers):
            found.append(one)
            _print(one)
    if args.report:
        listed = [{**asdict(one), "sound": one.code == SOUND} for one in found]
        write_json(args.report, listed)
    return max(verdict.code for verdict in found)


if __name__ == "__main__":
    run_main(main)
