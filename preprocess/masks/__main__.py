"""Makes masks apart from conversion: `python -m preprocess.masks --data FOLDER --out TREE`."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from harl_fast.errors import ConfigError, DataError, one_line, shown
from harl_fast.files import check_output, to_stderr
from harl_fast.host import usable_cores
from harl_fast.options import Parser, checked, whole_number
from harl_fast.program import head, run_main
from preprocess import masks
from preprocess.images.reading import STORED_PX, add_pages_and_channels, add_reading, reading_of
from preprocess.sources import read_source
from preprocess.sources.layout import HELD_OUT
from preprocess.sources.options import add_choices, choices_of


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = Parser(
        prog="python -m preprocess.masks",
        description="Make the masks of all images of a source as PNG files, TREE/train/<class>/"
        "<stem>.png, which `python -m preprocess.beton --masks TREE` reads. A run that was stopped "
        "continues where it was: run it again. Files that you edit stay as they are.",
        epilog="Exit code: 0 all is there, 2 it cannot be done, 130 interrupted.",
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="images, as for the conversion")
    add("--out", type=Path, required=True, metavar="TREE", help="folder of the masks")
    add(
        "--mask-method",
        type=checked(lambda text: masks.parse_spec(text)),  # imported when it is used
        metavar="METHOD",
        default="heuristic",
        help="name, or {name: {key: value, ...}}, of docs/masks.md; default %(default)s",
    )
    add(
        "--max-resolution",
        type=whole_number(8, 4096),
        default=STORED_PX,
        metavar="N",
        help="as in the conversion: longest side of the images that masks are made of; default "
        "%(default)s",
    )
    add_choices(parser)
    add_reading(parser)
    add_pages_and_channels(parser)
    add(
        "--shard",
        type=checked(_shard),
        default=(1, 1),
        metavar="I/N",
        help="do part I of N, for N machines; share the folder TREE, or copy all into one",
    )
    number = whole_number(1, 1024)
    add("--workers", type=number, default=usable_cores(), metavar="N", help="processes")
    return parser.parse_args(argv)


def _shard(text: str) -> tuple[int, int]:
    part, mark, parts = text.partition("/")
    digits = text.isascii() and part.isdecimal() and parts.isdecimal() and len(text) < 20
    if not (mark and digits and 1 <= int(part) <= int(parts)):
        raise ValueError(f"{shown(text)} is not I/N with 1 <= I <= N, such as 2/8")
    return int(part), int(parts)


with head(__name__, parse):
    from harl_fast.jit import require_compiler
    from preprocess.images.settle import settle
    from preprocess.masks.fill import fill_split, make_masks
    from preprocess.masks.registry import SUPERVISION, find_method, supervision, try_method
    from preprocess.masks.sources import FALLBACK
    from preprocess.masks.spec import MethodSpec
    from preprocess.masks.tree import MaskTree, claim, contested, describe, locked_shard, unused
    from preprocess.sources.pages import with_pages


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code; raises `HarlError` when it cannot be done."""
    args = parse(argv)
    require_compiler()
    spec: MethodSpec = args.mask_method
    if find_method(spec.name).open is None:
        raise ConfigError(
            f"mask method {spec}: {find_method(spec.name).about}; it is not made here. Give it "
            f"to `python -m preprocess.beton --mask-method`, as "
            f"{{{spec.name}: {{base: {{png: {args.out}}}}}}} if its base is"
        )
    methods = tuple(dict.fromkeys((spec, FALLBACK)))
    _check_place(args.out, args.data)
    check_output(args.out, option="--out", folder=True)
    try_method(spec)
    source = read_source(args.data, choices_of(args))
    reading = reading_of(args)
    if reading.all_pages:
        source = with_pages(source)
    train = source.splits["train"]
    reading = settle(reading, len(train.names), train.image)
    info = describe(spec, max_resolution=args.max_resolution, reading=reading)
    names = [name for one in source.splits.values() for name in one.names]
    tree = MaskTree(args.out, info=info, contested=contested(names))
    tree.check(names)
    make = functools.partial(
        make_masks,
        methods=methods,
        key=tree.key,
        max_resolution=args.max_resolution,
        reading=reading,
    )
    what = f"{spec} ({SUPERVISION[supervision(spec)]})"
    print(one_line(f"masks: {what} into {args.out}"), flush=True)
    try:
        with locked_shard(args.out, args.shard):
            claim(args.out, info)
            for name, split in source.splits.items():
                fill_split(tree, name, split, make, shard=args.shard, workers=args.workers)
        for line in unused(tree, names):
            print(line)
    except KeyboardInterrupt:
        to_stderr(f"interrupted: finished files stay in {args.out}; the same command continues")
        return 130
    return 0


def _check_place(out: Path, data: Path) -> None:
    folders = [path for path in data.iterdir() if path.is_dir()] if data.is_dir() else []
    splits = [path for path in folders if path.name.lower() in ("train", *HELD_OUT)]
    split = any(path.name.lower() == "train" for path in splits)
    for inside in splits if split else [data]:
        if out.resolve() == inside.resolve() or inside.resolve() in out.resolve().parents:
            raise DataError(
                f"--out {out} lies among the images in {inside}; choose a folder outside"
            )


if __name__ == "__main__":
    run_main(main)
