"""Draw a contact sheet of what the network receives: `python launch/preview.py --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from harl_fast.config import load_config, presets
from harl_fast.errors import run_main
from harl_fast.viz import contact_sheet


def main() -> int:
    """Parse, draw, say where the sheet lies."""
    parser = argparse.ArgumentParser(
        description="Draw originals with mask outlines and crop boxes, both views as the network "
        "receives them, and their mask cells.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train.beton")
    parser.add_argument(
        "--config", default="demo", help=f"preset ({', '.join(presets())}) or YAML file"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--out", type=Path, default=Path("runs/contact_sheet.png"), help="PNG file")
    parser.add_argument("--count", type=int, default=8, help="samples")
    args = parser.parse_args()
    config = load_config(args.config, overrides=args.overrides)
    contact_sheet(args.data / "train.beton", config, args.out, count=args.count)
    print(f"contact sheet: {args.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
