"""List a part of an image folder, as many of each class: `python -m preprocess.balanced`."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from harl_fast.errors import DataError, one_line
from harl_fast.files import check_output, write_text
from harl_fast.options import Parser, whole_number
from harl_fast.program import run_main
from harl_fast.runfiles import check_apart
from preprocess.images.listing import is_aside, list_images
from preprocess.sources.layout import LAYOUT, split_folders

HELD_OUT_SHARE = 1 / 6
"""Of all images; CIFAR-10's own share."""


def write_balanced_list(folder: Path, out: Path, *, count: int) -> Path:
    """Write a list of about ``count`` images, a sixth of them held out; return ``out``.

    folder: holds ``train/<class>/`` and ``val/<class>/`` or its like. Of each class the first
    images by name are taken, equally many, at least one and at most all. Raises DataError for
    another layout, and for names that no list can hold.
    """
    there = split_folders(path.name for path in folder.glob("*") if path.is_dir())
    shares = {there.train: 1 - HELD_OUT_SHARE, there.held_out: HELD_OUT_SHARE}
    rows = []
    for split, share in shares.items():
        inner = (path for path in (folder / split).glob("*") if not is_aside(path.name))
        classes = sorted(path for path in inner if path.is_dir())
        if not split or len(classes) < 2:
            where = split or ("val" if there.train else "train")
            raise DataError(f"{folder}: {where}/ has no class folders or is not there; {LAYOUT}")
        each = max(1, round(count * share / len(classes)))
        for path in classes:
            files = [path.resolve() / name for name in list_images(path).images]
            rows += [(file, path.name, split) for file in files[:each]]
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    for file, *_ in rows:
        if str(file).encode("utf-8", "replace") != os.fsencode(file):
            raise DataError(f"{file}: lists are UTF-8, and this name is not: rename it")
    table.writerow(("path", "label", "split"))
    table.writerows(rows)
    write_text(out, text.getvalue())
    return out


def main(argv: list[str] | None = None) -> int:
    """Write the list; return the exit code."""
    parser = Parser(
        prog="python -m preprocess.balanced",
        description="Write a list of a part of FOLDER, for `python -m preprocess.beton --data`: of "
        "each class equally many images, a sixth of all held out.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with train/ and val/ or test/")
    count = whole_number(2, 10**9)
    parser.add_argument("--count", type=count, required=True, metavar="N", help="in both splits")
    parser.add_argument("--out", type=Path, required=True, metavar="LIST", help="such as part.csv")
    args = parser.parse_args(argv)
    check_output(args.out, option="--out", suffix=".csv")
    check_apart(args.out, option="--out")
    print(one_line(f"list: {write_balanced_list(args.folder, args.out, count=args.count)}"))
    return 0


if __name__ == "__main__":
    run_main(main)
