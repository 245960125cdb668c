"""The program behind `make beton`: images in, containers with foreground masks out."""

from __future__ import annotations

import argparse
import functools
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harl_fast.demoset import IMAGES, SIDE_PX
from harl_fast.errors import DataError, one_line
from harl_fast.files import is_url, local_path
from harl_fast.host import usable_cores
from harl_fast.options import SEED_MAX, Parser, checked, refuse_given, whole_number
from harl_fast.program import head, run_main
from preprocess import masks
from preprocess.images.reading import STORED_PX, add_pages_and_channels, add_reading, reading_of
from preprocess.sources import DATASETS, Source, folder_source, read_source, torchvision_source
from preprocess.sources.archives import scratch_beside
from preprocess.sources.options import add_choices, choices_of

if TYPE_CHECKING:
    from harl_fast.data.container.stores import Store

MASK_SIZE_PX = 128
"""Methods make masks of 64 or 128 px, which this holds as they are. Halving the latter costs 2 to 3
points of the cells' overlap with the truth (benchmarks/mask_storage.py)."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = Parser(
        prog="python -m preprocess.beton",
        usage="%(prog)s [--data FOLDER | --add FOLDER | --dataset NAME] --out OUT [options]",
        description="Write OUT/train.beton and OUT/val.beton (images, foreground masks, labels) "
        "from an image folder, a public data set, or else a generated demo set.",
        epilog="OUT/<split>.json describes a container, OUT/<split>.report.json lists what was "
        "left out and why; `python -m preprocess.verify OUT/*.beton` reads every byte again.",
    )
    add = parser.add_argument
    _add_source(parser)
    add("--out", type=_path_or_url, required=True, metavar="OUT", help="folder or URL to write to")
    add(
        "--masks",
        type=Path,
        metavar="TREE",
        help="mask files TREE/train/<class>/<stem>.png, such as `python -m preprocess.masks` makes",
    )
    add(
        "--mask-method",
        type=checked(lambda text: masks.parse_spec(text)),  # imported when it is used
        metavar="METHOD",
        default="heuristic",
        help="heuristic, or another {name: {key: value}} of docs/masks.md; with --masks for images "
        "without a mask there; default %(default)s",
    )
    number = functools.partial(_add_number, parser.add_argument)
    number("--mask-size", 8, 1024, default=MASK_SIZE_PX, about="side of masks, a multiple of 8")
    about = "longest side of the stored images"
    number("--max-resolution", 8, 4096, default=STORED_PX, about=about)
    add(
        "--store",
        type=checked(_store),
        metavar="KIND",
        default="jpg",
        help="jpg (re-encoded JPEG), passthrough (a JPEG file's own bytes where the loader reads "
        "them, else jpg), raw, yuv420, mix:P or mix:P:yuv420 (a share P of those); default jpg",
    )
    number("--quality", 1, 100, default=90, about="JPEG quality")
    add_choices(parser)
    add_reading(parser)
    add_pages_and_channels(parser)
    number("--workers", 1, 1024, default=usable_cores(), about="processes")
    _add_shards(parser)
    _add_demo_set(parser)
    args = parser.parse_args(argv)
    args.data = args.data or args.add
    _check_options(parser, args)
    return args


def _check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error for values and options that do not go together."""
    if args.mask_size % 8:
        parser.error(f"argument --mask-size: {args.mask_size} is no multiple of 8")
    if not args.data:
        of_images = ("masks", "source", "val", "val_seed", "image_column", "label_column")
        refuse_given(parser, args, of_images, why="belongs to the images of --data FOLDER")
    if args.data or args.dataset:
        of_demo = ("demo_images", "demo_size", "demo_seed")
        refuse_given(parser, args, of_demo, why="belongs to the generated set, without --data")
    if not args.add:
        refuse_given(parser, args, ["new_classes"], why="belongs to --add FOLDER")
    if args.add and isinstance(args.out, str):
        parser.error("argument --add: takes an --out that is a folder of this machine")


def _path_or_url(text: str) -> Path | str:
    return text if is_url(text) else local_path(text)


def _store(text: str) -> Store:
    from harl_fast.data.container.stores import parse_store  # takes seconds

    return parse_store(text)


def _add_source(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    about = "folder or list of images, see docs/data.md"
    which.add_argument("--data", type=_path_or_url, metavar="FOLDER", help=about)
    which.add_argument(
        "--add",
        type=_path_or_url,
        metavar="FOLDER",
        help="like --data, but add the images that are not there yet to those in OUT",
    )
    which.add_argument(
        "--dataset",
        choices=sorted(DATASETS),
        metavar="NAME",
        help="one of torchvision's sets, such as cifar10, see docs/data.md; downloaded into "
        "OUT/download",
    )
    parser.add_argument(
        "--dataset-root",
        type=Path,
        metavar="DIR",
        help="where --dataset's files lie already: no download",
    )


def _add_shards(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("large sets").add_argument
    add(
        "--shard-size",
        type=whole_number(1, 10**9),
        metavar="N",
        help="images per shard; a split of more becomes a set, OUT/train/*.beton; default 200000, "
        "or 20 GB of source if that is less",
    )
    add(
        "--ray",
        metavar="ADDRESS",
        help="convert shards on a Ray cluster: its address, or auto for this machine's; needs ray",
    )
    add(
        "--new-classes",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="with --add: take images of classes that OUT lacks; default --no-new-classes",
    )


def _add_demo_set(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("demo set, without --data and --dataset")
    number = functools.partial(_add_number, group.add_argument)
    number("--demo-images", 20, 10**6, default=IMAGES, about="images in both splits together")
    number("--demo-size", 32, 512, default=SIDE_PX, about="side of the images")
    number("--demo-seed", 0, SEED_MAX, default=0, about="other seeds give other images")


def _add_number(
    add: Callable[..., Any], flag: str, low: int, high: int, *, default: int, about: str
) -> None:
    """Add an option that takes a whole number from low to high."""
    kind = whole_number(low, high)
    add(flag, type=kind, default=default, metavar="N", help=f"{about}; default %(default)s")


with head(__name__, parse):
    from harl_fast.data.container.manifest import Manifest, find_container, read_manifest
    from harl_fast.jit import require_compiler
    from preprocess.adding import Base
    from preprocess.advice import advise
    from preprocess.build import build
    from preprocess.convert import ConversionSettings
    from preprocess.demo.make import DemoSettings, make_demo_set
    from preprocess.images.settle import settle
    from preprocess.places import LocalPlace, Place
    from preprocess.publish import finish
    from preprocess.sources.pages import with_pages
    from preprocess.urls import UrlPlace, local_folder, mirror


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code; raises `DataError` when it cannot be done."""
    args = parse(argv)
    require_compiler()
    settings = ConversionSettings(
        args.max_resolution,
        args.quality,
        args.mask_size,
        args.mask_method,
        args.store,
        reading_of(args),
    )
    if args.data:
        _check_apart(args.out, args.data, adding=bool(args.add))
    place: Place = UrlPlace(args.out) if isinstance(args.out, str) else LocalPlace(args.out)
    place.check()
    with place.locked(), scratch_beside(_local(args.out)) as scratch:
        finished = finish(place)
        base = Base.of(args.out) if args.add else None
        if base is not None:
            settings = base.settings(settings)
            if finished:
                print("an earlier run was cut short while its files took their names: it is done")
        source, given = _source(args, scratch)
        if settings.reading.all_pages:
            source = with_pages(source)
        if base is not None:
            source, base = base.extend(source, new_classes=args.new_classes)
            if not source.splits:
                print(f"nothing to add: all images are in {one_line(str(args.out))} already")
                return 0
        elif told := _replaced(args.out, source):
            print(one_line(f"note: {told}"), flush=True)
        split = next(iter(source.splits.values()))
        reading = settle(settings.reading, len(split.names), split.image)
        settings = replace(settings, reading=reading)
        manifests = build(
            source,
            place,
            settings,
            masks=given,
            workers=args.workers,
            shard_size=args.shard_size,
            base=base,
            finished=finished,
            ray=args.ray,
        )
        if base is None:
            _advise(source, settings, manifests[0])
    return 0


def _replaced(out: Path | str, source: Source) -> str:
    """Return what to say of containers of another source that will be replaced, or ""."""
    try:
        old = read_manifest(find_container(Path(out), "train"))
    except (DataError, OSError):  # none are there, or none that can be used
        return ""
    if isinstance(out, str) or old.source == source.name:
        return ""
    return (
        f"the containers of {old.source} in {out} ({old.count:,} images in train) are replaced at "
        f"the end: interrupt this and give another --out to keep them"
    )


def _advise(source: Source, settings: ConversionSettings, manifest: Manifest) -> None:
    try:
        for line in advise(source, settings, manifest):
            print(line, flush=True)
    except (DataError, OSError) as error:  # the containers are there
        print(one_line(f"note: no advice on stores: {error}"))


def _check_apart(out: Path | str, data: Path | str, *, adding: bool) -> None:
    inner, outer = (path if isinstance(path, Path) else local_folder(path) for path in (out, data))
    if inner and outer and inner.resolve().is_relative_to(outer.resolve()):
        option = "--add" if adding else "--data"
        remedy = "move the set to" if adding else "choose"
        raise DataError(
            f"--out {out} lies inside {option} {data}; {remedy} a folder outside, so that the "
            f"containers are not taken for images"
        )


def _local(out: Path | str) -> Path:
    """Return a folder of this machine for sources that are not files of it."""
    if isinstance(out, Path):
        return out
    key = hashlib.sha256(out.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"harl_fast-{key}"


def _source(args: argparse.Namespace, scratch: Path) -> tuple[Source, Path | None]:
    """Return the images that the command line asks for, and their mask tree if there is one."""
    if args.dataset_root and not args.dataset:
        raise DataError(f"--dataset-root {args.dataset_root}: it says where --dataset's files are")
    if args.dataset:
        place = _local(args.out) / "download"
        source = torchvision_source(args.dataset, place, root=args.dataset_root)
        for note in source.notes:
            print(f"note: {note}", flush=True)
        return source, args.masks
    if args.data:
        data = args.data
        if isinstance(data, str):
            copies = _local(args.out) / "download"
            print(one_line(f"copying the files of {data} to {copies}"), flush=True)
            data = mirror(data, copies)
        choices = replace(choices_of(args, scratch), adding=bool(args.add))
        return read_source(data, choices), args.masks
    demo = DemoSettings(args.demo_images, args.demo_size, args.demo_seed)
    folder = _local(args.out) / "source"
    make_demo_set(folder, demo, workers=args.workers)
    source = folder_source(folder)
    # What lies beside the splits, masks and the set's own marker, is nobody's file left out.
    splits = {name: replace(split, rejected=[]) for name, split in source.splits.items()}
    return replace(source, name=demo.name, splits=splits), folder / "masks"


if __name__ == "__main__":
    run_main(main)
