"""Data, pretraining and evaluation in one go: `python launch/demo.py --help`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from harl_fast.errors import HarlError, one_line
from harl_fast.files import format_seconds
from harl_fast.options import whole_number
from harl_fast.program import run_main
from harl_fast.runfiles import check_folders, discard_run
from harl_fast.supervision import run_below

ROOT, SHEET = Path(__file__).resolve().parent.parent, "contact_sheet.png"


def run(*command: str | Path) -> None:
    """Run one of the daily commands in the project's folder, showing it first."""
    print("\n$", *(one_line(str(word)) for word in command), flush=True)
    if code := run_below([sys.executable, *map(str, command)], cwd=ROOT):
        raise HarlError(f"the command above ended with exit code {code}; its own message says why")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make images, pretrain, judge the features: 8 to 9 minutes on two CPU cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="containers; kept")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run folder; replaced")
    parser.add_argument("--images", type=whole_number(20, 10**6), default=3000, help="drawn")
    parser.add_argument("--epochs", type=whole_number(1, 10**6), help="default: the preset's")
    parser.add_argument("--engine", default="ds_configs/cpu.json", help="DeepSpeed configuration")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args, start = parse(argv), time.monotonic()
    check_folders({"--run": args.run, "--data": args.data}, base=ROOT)
    if not (ROOT / args.data / "val.json").exists():
        run("-m", "preprocess.beton", "--out", args.data, "--demo-images", str(args.images))
    discard_run(ROOT / args.run, engine=ROOT / args.engine)  # any other content is refused
    chosen = ["--run", args.run, *([] if args.epochs is None else ["--epochs", str(args.epochs)])]
    launcher = (Path(sys.executable).with_name("deepspeed"), "--log_level=error", "--num_gpus", "1")
    pretrain = ["launch/pretrain.py", "--deepspeed_config", args.engine, "--config", "demo"]
    run("launch/guard.py", sys.executable, *launcher, *pretrain, "--data", args.data, *chosen)
    drawn = ["--config", args.run / "config.yaml", "--out", args.run / SHEET]
    run("-m", "preprocess.preview", args.data / "train.beton", *drawn)
    run("launch/lineval.py", "--ckpt", args.run, "--data", args.data, "--random")
    print(summary(ROOT / args.data, ROOT / args.run, took_s=time.monotonic() - start))
    return 0


def summary(data: Path, folder: Path, *, took_s: float) -> str:
    """Return what was made and reached, read from the files that the commands left."""
    manifest = json.loads((data / "train.json").read_text("utf-8"))
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    last = json.loads([line for line in lines if '"loss"' in line][-1])  # others are a probe's
    mask, scores = manifest["mask"], json.loads((folder / "lineval.json").read_text())
    rows = {
        "images": f"{manifest['count']:,} in {len(manifest['classes'])} classes",
        "mask coverage": f"{mask['coverage_mean']:.1%} on average, {mask['empty_share']:.1%} empty",
        "steps": f"{last['step']:,} at {last['img_s']:.0f} images/s",
        "final loss": f"{last['loss']:.4f}",
    }
    for name in ("pretrained", "random"):
        linear, knn = scores[name]["linear"]["metrics"]["top1"], scores[name]["knn"]["top1"]
        rows[f"{name} encoder"] = f"linear {linear:.1f} %, k-NN {knn:.1f} % (top-1)"
    rows |= {name: one_line(str(folder / name)) for name in ("tensorboard", "checkpoints", SHEET)}
    rows["took"] = format_seconds(took_s)
    return "\nsummary\n" + "\n".join(f"  {name:20}{value}" for name, value in rows.items())


if __name__ == "__main__":
    run_main(main)
