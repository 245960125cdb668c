"""Reads every byte of containers: `python -m preprocess.verify FILE.beton...`."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ffcv.reader import Reader
from PIL import Image

from harl_fast.data.manifest import check_container, names_path, read_manifest, sample_name
from harl_fast.data.maskfield import BitMaskField
from harl_fast.errors import DataError, run_main
from harl_fast.files import Progress, sha256_file


def verify(beton: Path) -> int:
    """Return the container's sample count; `DataError` names what differs from its manifest."""
    manifest = read_manifest(beton)
    check_container(beton, manifest)
    if not names_path(beton).is_file() or sha256_file(names_path(beton)) != manifest.names_sha256:
        raise DataError(
            f"{names_path(beton)} is missing or belongs to another run. Copy the files of a "
            f"container together, or write it again with `make beton`"
        )
    if sha256_file(beton) != manifest.beton_sha256:
        broken = list(damaged(beton))
        first = f": {sample_name(beton, broken[0])} first" if broken else ""
        raise DataError(
            f"{beton} does not have its manifest's checksum; {len(broken)} of {manifest.count} "
            f"images do not decode{first}. Copy it again, or write it again with `make beton`"
        )
    return manifest.count


def damaged(beton: Path) -> Iterator[int]:
    """Yield the samples whose image does not decode in full."""
    reader = Reader(str(beton), {"mask": BitMaskField})
    data = np.memmap(beton, np.uint8, mode="r")
    sizes = dict(zip(reader.alloc_table["ptr"], reader.alloc_table["size"], strict=True))
    with Progress(len(reader.metadata), label=f"decoding {beton.name}") as progress:
        for index, row in enumerate(reader.metadata):
            start = int(row["f0"]["data_ptr"])
            jpeg = data[start : start + int(sizes.get(row["f0"]["data_ptr"], 0))].tobytes()
            try:
                with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
                    image.load()
                    sound = image.size == (int(row["f0"]["width"]), int(row["f0"]["height"]))
            except (OSError, SyntaxError, ValueError):  # what Pillow raises on broken JPEG data
                sound = False
            if not sound:
                yield index
            progress.advance()


def main(argv: list[str] | None = None) -> int:
    """Run the program: all given containers must be sound."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.verify",
        description="Compare containers with the checksums in their manifests; if one differs, "
        "name the images that no longer decode.",
    )
    parser.add_argument("betons", nargs="+", type=Path, metavar="FILE.beton")
    for beton in parser.parse_args(argv).betons:
        print(f"{beton}: all {verify(beton):,} samples are as written")
    return 0


if __name__ == "__main__":
    run_main(main)
