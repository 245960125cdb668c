"""Write a run's encoder for other programs: `python launch/export.py --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from harl_fast.errors import one_line
from harl_fast.program import run_main


def main(argv: list[str] | None = None) -> int:
    """Parse and export; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Write a checkpoint's encoder as a safetensors file with the tensor names of "
        "torchvision, or of timm for its networks. Only the classifier is missing."
    )
    parser.add_argument("ckpt", type=Path, metavar="CKPT", help="run folder or checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="such as encoder.safetensors")
    args = parser.parse_args(argv)
    # Imported late: torch takes seconds, which --help and usage errors need not wait for.
    from harl_fast.engine.networks import export_encoder

    print(one_line(export_encoder(args.ckpt, args.out)))
    return 0


if __name__ == "__main__":
    run_main(main)
