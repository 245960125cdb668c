"""Draws what the network receives from a container, or masks: `python -m preprocess.preview`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harl_fast.config import RunConfig, load_config, override_config, presets
from harl_fast.errors import one_line, shown
from harl_fast.files import check_output
from harl_fast.options import Parser, checked, refuse_given, whole_number
from harl_fast.program import head, run_main
from preprocess.images.reading import add_reading, reading_of


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = Parser(
        prog="python -m preprocess.preview",
        description="Draw originals with mask outlines and crop boxes, all views as the network "
        "receives them, and their mask cells, from a container of any store; or, with --masks, "
        "images and their masks: the worst, typical ones and the best.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    about = "or a set of containers; with --masks also a folder of images"
    add("source", type=Path, metavar="FILE.beton", help=about)
    add("--out", type=Path, default=Path("runs/contact_sheet.png"), help="PNG file")
    about = "samples, the first ones of the epoch"
    add("--count", type=whole_number(1, 1000), default=8, metavar="N", help=about)
    group = parser.add_argument_group("what the network receives")
    add = group.add_argument
    about = f"preset ({', '.join(presets())}) or YAML file, such as a run's config.yaml; "
    about += "otherwise the default with views of the stored images' size, at most 224 px"
    add("--config", help=about)
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    add("--ids", type=checked(_ids), default=[], metavar="3,17", help="these samples instead")
    about = "epoch whose crops and colours are shown"
    add("--epoch", type=whole_number(0, 10**6), default=0, metavar="N", help=about)
    add(
        "--stats",
        action="store_true",
        help="print and draw (OUT_stats.png) the masks' coverage and the share of foreground by "
        "cell, over the crops of many samples",
    )
    group = parser.add_argument_group(
        "masks", "Worst, typical and best ones by IoU with the truth, or else by how unlike the "
        "colours inside and outside of the mask are."
    )  # fmt: skip
    add = group.add_argument
    add("--masks", action="store_true", help="draw image, soft map, mask, and truth if given")
    about = "how masks of a folder's images are made, see docs/masks.md; as in `make beton`"
    add("--mask-method", default="heuristic", metavar="SPEC", help=about)
    add("--truth", type=Path, metavar="FOLDER", help="true masks under the images' names")
    about = "images looked at, evenly spaced"
    add("--most", type=whole_number(1, 10**6), default=200, metavar="N", help=about)
    add_reading(parser)
    args = parser.parse_args(argv)
    _check_mode(parser, args)
    return args


def _check_mode(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error for options that do not apply to what is drawn."""
    of_views = ("config", "overrides", "ids", "epoch", "stats")
    making = ("mask_method", "range", "icc", "keep_warned")
    if args.masks:
        refuse_given(parser, args, of_views, why="belongs to views; leave it or --masks out")
    else:
        of_masks = (*making, "truth", "most")
        refuse_given(parser, args, of_masks, why="belongs to --masks")
    if args.ids:
        refuse_given(parser, args, ["count"], why="the samples are those of --ids; leave one out")
    if args.source.suffix == ".beton":
        why = "belongs to images in a folder; a container has its masks"
        refuse_given(parser, args, making, why=why)


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    if len(words) > 1000 or not all(
        word.isascii() and word.isdecimal() and len(word) < 12 for word in words
    ):
        raise ValueError(f"{shown(text)} is no list of up to 1000 numbers such as 3,17")
    return [int(word) for word in words]


with head(__name__, parse):
    import numpy as np

    from harl_fast.data.container.index import read_index
    from harl_fast.data.container.manifest import containers_in, manifest_path, read_manifest
    from harl_fast.data.occupancy import occupancy, occupancy_text
    from harl_fast.engine.views import sizes_text, view_geometry
    from harl_fast.jit import require_compiler
    from harl_fast.runfiles import check_apart
    from harl_fast.viz import contact_sheet, occupancy_chart, write_png
    from preprocess.images.arrays import Map, Mask, Pixels
    from preprocess.masks import gallery
    from preprocess.masks.registry import parse_spec, to_mask, try_method
    from preprocess.masks.runner import maps_of


def finder(spec: str) -> gallery.Find:
    """Return a mask method as the gallery takes it; `HarlError` if it does not work at all."""
    method = parse_spec(spec)
    try_method(method)

    def find(images: Sequence[Pixels]) -> list[tuple[Mask, Map] | str]:
        answers = maps_of(method, list(images))
        return [a if isinstance(a, str) else (to_mask(method, a)[0], a) for a in answers]

    return find


def draw_masks(args: argparse.Namespace) -> None:
    """Write the gallery of a folder's or a container's masks, and say where and of what."""
    is_set = args.source.is_dir() and manifest_path(args.source).exists()
    if args.source.suffix == ".beton" or is_set:
        found = list(gallery.from_container(args.source, truth=args.truth, most=args.most))
        failed: dict[str, str] = {}
        title = f"Masks stored in {args.source}"
    else:
        find = finder(args.mask_method)
        found, failed = gallery.from_folder(
            args.source, find, truth=args.truth, most=args.most, reading=reading_of(args)
        )
        title = f"Masks of {args.source} by {args.mask_method}"
    about = {
        "source": str(args.source),
        "mask_method": args.mask_method,
        "truth": str(args.truth),
        "most": args.most,
    }
    for name, why in failed.items():
        print(one_line(f"left out: {name}: {why}"))
    write_png(args.out, gallery.sheet(found, count=args.count, title=title), about=about)
    true = sum(one.has_truth for one in found)
    if args.truth and true < len(found):
        lacking = f"{len(found) - true} of {len(found)} images have no mask in {args.truth}"
        print(one_line(f"note: {lacking}"))
    figure = "IoU" if true else "colour separation"
    values = sorted(one.figure for one in found if one.has_truth or not true)
    print(f"{figure} of {len(values)} images: mean {sum(values) / len(values):.3f}, from "
          f"{values[0]:.3f} to {values[-1]:.3f}")  # fmt: skip
    print(one_line(f"masks: {args.out}"))


def fitting(beton: Path) -> list[str]:
    """Return overrides that give views the size of a container's images and at least 4 x 4 cells.

    Raises `DataError` when the container is not sound.
    """
    rows = read_index(beton, read_manifest(beton)).rows
    side = float(np.median(np.sqrt(rows["height"].astype(np.float32) * rows["width"])))
    size_px = min(max(32, round(side / 32) * 32), 224)
    stem = "imagenet" if size_px >= 128 else "small-s2" if size_px >= 64 else "small"
    return [f"model.stem={stem}", *(f"data.views.{view}.size_px={size_px}" for view in (0, 1))]


def _check_output(out: Path, source: Path) -> None:
    check_output(out, option="--out", inputs=[source], suffix=".png")
    check_apart(out, option="--out")


def main(argv: list[str] | None = None) -> int:
    """Draw and say where the pictures lie."""
    args = parse(argv)
    require_compiler()
    if args.source.suffix == ".beton" and not args.source.exists():  # a set may be in its place
        args.source = next(iter(containers_in(args.source.parent, args.source.stem)), args.source)
    _check_output(args.out, args.source)
    chart = args.out.with_name(f"{args.out.stem}_stats.png")
    if args.stats:
        _check_output(chart, args.source)
    if args.masks:
        draw_masks(args)
        return 0
    if args.config:
        config = load_config(args.config, overrides=args.overrides)
    else:
        config = override_config(RunConfig(), fitting(args.source))
        config = override_config(config, args.overrides)  # alone, to be named in messages
    views = view_geometry(config, epoch=args.epoch)
    name = one_line(args.config or "the default")
    print(f"configuration: {name}, views of {sizes_text(views)}")
    contact_sheet(args.source, config, args.out, count=args.count, ids=args.ids, epoch=args.epoch)
    print(one_line(f"contact sheet: {args.out}"))
    if args.stats:
        found = occupancy(args.source, views, seed=config.seed, epoch=args.epoch)
        about = {"container": str(args.source), "epoch": args.epoch}
        occupancy_chart(found, chart, about={**about, "config": config.model_dump(mode="json")})
        print(occupancy_text(found))
        print(one_line(f"statistics: {chart}"))
    return 0


if __name__ == "__main__":
    run_main(main)
