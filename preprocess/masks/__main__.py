"""Makes masks apart from conversion: `python -m preprocess.masks --data FOLDER --out CACHE`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from harl_fast.errors import ConfigError, DataError, one_line, shown
from harl_fast.files import Progress, check_output
from harl_fast.host import usable_cores
from harl_fast.jit import require_compiler
from harl_fast.options import checked, whole_number
from harl_fast.program import run_main
from preprocess.masks import cache
from preprocess.masks.assign import FALLBACK
from preprocess.masks.cachefile import Row, write_rows
from preprocess.masks.find import CHUNK
from preprocess.masks.methods import METHODS, SUPERVISION, parse_spec, supervision, try_method
from preprocess.masks.spec import MethodSpec
from preprocess.pool import ordered_map
from preprocess.reading import add_reading, reading_of
from preprocess.sources import Split, folder_source

MakeRows = Callable[[list[tuple[str, Path]]], list[Row]]
"""`cache.make_rows` with its settings."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.masks",
        description="Make the masks of all images in FOLDER/train and FOLDER/val into a cache, "
        "which `python -m preprocess.beton --masks CACHE` reads. A run that was stopped continues "
        "where it was: run it again.",
        epilog="methods: "
        + "; ".join(_usage(name) for name, one in METHODS.items() if one.open)
        + ". Exit code: 0 all is there, 2 it cannot be done, 130 interrupted.",
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="images, as for the conversion")
    add("--out", type=Path, required=True, metavar="CACHE", help="folder of the masks")
    add(
        "--mask-method",
        type=checked(parse_spec),
        metavar="METHOD",
        default=FALLBACK,
        help="name, or name:key=value,...; default %(default)s",
    )
    add(
        "--max-resolution",
        type=whole_number(8, 4096),
        default=512,
        metavar="N",
        help="as in the conversion: longest side of the images that masks are made of; default "
        "%(default)s",
    )
    add_reading(parser)
    add(
        "--shard",
        type=checked(_shard),
        default=(1, 1),
        metavar="I/N",
        help="do part I of N, for N machines; share the folder CACHE, or copy all into one",
    )
    number = whole_number(1, 1024)
    add("--workers", type=number, default=usable_cores(), metavar="N", help="processes")
    return parser.parse_args(argv)


def _usage(name: str) -> str:
    method = METHODS[name]
    keys = ",".join(
        key.upper() if one.default is None else f"{key}={one.default}"
        for key, one in method.parameters.items()
        if not isinstance(one.default, tuple)
    )
    return f"{name}{':' if keys else ''}{keys} ({method.about})".replace("%", "%%")


def _shard(text: str) -> tuple[int, int]:
    part, mark, parts = text.partition("/")
    digits = part.isdecimal() and parts.isdecimal() and len(text) < 20
    if not (mark and digits and 1 <= int(part) <= int(parts)):
        raise ValueError(f"{shown(text)} is not I/N with 1 <= I <= N, such as 2/8")
    return int(part), int(parts)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code; raises `HarlError` when it cannot be done."""
    args = parse(argv)
    require_compiler()
    spec: MethodSpec = args.mask_method
    if METHODS[spec.name].open is None:
        raise ConfigError(
            f"mask method {spec}: {METHODS[spec.name].about}; it needs no cache. Give it to "
            f"`python -m preprocess.beton --mask-method`, as shuffled:base=cache:{args.out} if the "
            f"masks below it are made here"
        )
    methods = tuple(dict.fromkeys((spec, FALLBACK)))
    _check_place(args.out, args.data)
    check_output(args.out, option="--out", folder=True)
    try_method(spec)
    source = folder_source(args.data)
    for note in source.notes:
        print(f"note: {note}", flush=True)
    reading = reading_of(args)
    info = cache.describe(spec, max_resolution=args.max_resolution, reading=reading)
    print(f"masks: {spec} ({SUPERVISION[supervision(spec)]}) into {args.out}", flush=True)
    try:
        with cache.locked_shard(args.out, args.shard):
            cache.claim(args.out, info)
            for name, split in source.splits.items():
                make = functools.partial(
                    cache.make_rows,
                    methods=methods,
                    max_resolution=args.max_resolution,
                    reading=reading,
                )
                make_split(
                    args.out, name, split, make, info, shard=args.shard, workers=args.workers
                )
    except KeyboardInterrupt:
        print(
            f"interrupted: finished files stay in {args.out}; the same command continues",
            file=sys.stderr,
        )
        return 130
    return 0


def _check_place(out: Path, data: Path) -> None:
    for split in ("train", "val", "test"):
        inside = (data / split).resolve()
        if out.resolve() == inside or inside in out.resolve().parents:
            raise DataError(
                f"--out {out} lies among the images in {inside}; choose a folder outside"
            )


def make_split(
    out: Path,
    name: str,
    split: Split,
    make: MakeRows,
    info: dict[str, object],
    *,
    shard: tuple[int, int],
    workers: int,
) -> None:
    """Make the masks of one split that a shard is to make and that are not there yet."""
    assert split.root is not None
    key, size = cache.key_of(info), cache.FILE_IMAGES
    files = range(-(-len(split.names) // size))
    own = [number for number in files if number % shard[1] == shard[0] - 1]
    todo, reasons = [], Counter[str]()
    for number in own:
        path = cache.file_path(out, name, number)
        why = cache.stale(
            path, split.names[number * size : (number + 1) * size], split.root, key=key
        )
        if why:
            todo.append(number)
            reasons[why] += why != "missing"
    for why, count in (+reasons).items():
        print(f"{name}: made again: {count} file(s): {one_line(why)}")
    _tidy(out / name, {f"{number:06d}" for number in own}, count=len(files))
    rows = _made(out, name, split, make, todo=todo, key=key, workers=workers)
    _summarise(name, rows, kept=len(own) - len(todo), files=len(own), others=len(files) - len(own))


def _tidy(folder: Path, own: set[str], *, count: int) -> None:
    """Remove what a killed run of this shard was writing, and files beyond the list of images."""
    for path in sorted(folder.glob(".*.safetensors.*.tmp")):
        if path.name[1:7] in own:
            path.unlink(missing_ok=True)
    for path in sorted(folder.glob("*.safetensors")):
        if path.stem.isdigit() and int(path.stem) >= count:
            path.unlink(missing_ok=True)


def _made(
    out: Path,
    name: str,
    split: Split,
    make: MakeRows,
    *,
    todo: list[int],
    key: str,
    workers: int,
) -> Iterator[Row]:
    """Make the files ``todo`` and yield their rows."""
    if not todo:
        return
    size = cache.FILE_IMAGES
    chunks = [
        range(start, min(start + CHUNK, (number + 1) * size, len(split.names)))
        for number in todo
        for start in range(number * size, min((number + 1) * size, len(split.names)), CHUNK)
    ]
    tasks = ([(split.names[i], split.root / split.names[i]) for i in chunk] for chunk in chunks)
    results = ordered_map(
        make,
        tasks,
        workers=min(workers, len(chunks)),
        describe=lambda task: f"{task[0][0]} to {task[-1][0]}",
    )
    total = sum(len(chunk) for chunk in chunks)
    with contextlib.closing(results), Progress(total, label=f"masks of {name}") as progress:
        rows: list[Row] = []
        for chunk, made in zip(chunks, results, strict=True):
            rows += made
            number = chunk.start // size
            if chunk.stop == min((number + 1) * size, len(split.names)):
                write_rows(cache.file_path(out, name, number), rows, key=key)
                yield from rows
                rows = []
            progress.advance(len(chunk))


def _summarise(name: str, rows: Iterator[Row], *, kept: int, files: int, others: int) -> None:
    start, count, counts, first = time.monotonic(), 0, Counter[str](), ""
    for row in rows:
        count += 1
        counts["unreadable images"] += not row.kept.bits
        counts["centre ellipses"] += row.kept.stand_in
        counts["fall-backs"] += bool(row.kept.problem) and bool(row.kept.bits)
        first = first or (row.kept.problem and f"{row.name}: {row.kept.problem}")
    seconds = max(time.monotonic() - start, 1e-9)
    shares = ", ".join(f"{what} {n:,} ({n / count:.1%})" for what, n in counts.items() if count)
    print(f"{name}: {files} files of masks, {kept} of them there before", flush=True)
    if count:
        print(f"  {count:,} masks made now, {count / seconds:,.0f} images/s; {shares}")
    if first:
        print(f"  first problem: {one_line(first)}")
    if others:
        print(f"  {others} files belong to other shards")


if __name__ == "__main__":
    run_main(main)
