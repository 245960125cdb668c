"""Draws what the network receives from a container: `python -m preprocess.preview FILE.beton`."""

from __future__ import annotations

import argparse
from pathlib import Path

from harl_fast.config import load_config, presets
from harl_fast.data.occupancy import SAMPLES, occupancy, occupancy_text
from harl_fast.engine.views import view_geometry
from harl_fast.errors import run_main
from harl_fast.viz import contact_sheet, occupancy_chart


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.preview",
        description="Draw originals with mask outlines and crop boxes, all views as the network "
        "receives them, and their mask cells, from a container of any store.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("beton", type=Path, metavar="FILE.beton")
    add("--out", type=Path, default=Path("runs/contact_sheet.png"), help="PNG file")
    add("--config", default="demo", help=f"preset ({', '.join(presets())}) or YAML file")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    add("--count", type=int, default=8, help="samples, the first ones of the epoch")
    add("--ids", default="", metavar="3,17", help="these samples instead")
    add("--epoch", type=int, default=0, help="epoch whose crops and colours are shown")
    add(
        "--stats",
        action="store_true",
        help=f"print and draw (OUT_stats.png) the masks' coverage and the share of foreground by "
        f"cell, over the crops of up to {SAMPLES} samples",
    )
    args = parser.parse_args(argv)
    if args.count < 1 or args.epoch < 0:
        parser.error(f"--count {args.count}, --epoch {args.epoch}: use 1 or more, 0 or more")
    try:
        args.ids = [int(word) for word in args.ids.replace(",", " ").split()]
    except ValueError:
        parser.error(f"argument --ids: {args.ids!r} is no list of numbers such as 3,17")
    return args


def main(argv: list[str] | None = None) -> int:
    """Draw and say where the pictures lie."""
    args = parse(argv)
    config = load_config(args.config, overrides=args.overrides)
    contact_sheet(args.beton, config, args.out, count=args.count, ids=args.ids, epoch=args.epoch)
    print(f"contact sheet: {args.out}")
    if args.stats:
        views = view_geometry(config, epoch=args.epoch)
        found = occupancy(args.beton, views, seed=config.seed, epoch=args.epoch)
        chart = args.out.with_name(f"{args.out.stem}_stats.png")
        occupancy_chart(found, chart)
        print(f"{occupancy_text(found)}\nstatistics: {chart}")
    return 0


if __name__ == "__main__":
    run_main(main)
