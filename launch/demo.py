"""Data, pretraining and evaluation in one go: `python launch/demo.py --help`."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from harl_fast.errors import HarlError, run_main
from harl_fast.files import check_output, format_seconds

ROOT = Path(__file__).resolve().parent.parent
SHEET = "contact_sheet.png"


def run(*command: str | Path) -> None:
    """Run one of the daily commands in the project's folder, showing it first."""
    words = [str(word) for word in command]
    print(f"\n$ {' '.join(words)}", flush=True)
    if code := subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
        raise HarlError(f"the command above ended with exit code {code}; its own message says why")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make a small image set, pretrain on it, judge the features against a random "
        "encoder's, and print a summary. 8 to 9 minutes on two CPU cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="containers; kept")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run folder; replaced")
    parser.add_argument("--images", type=int, default=3000, help="to generate; a fifth is held out")
    parser.add_argument("--epochs", type=int, help="default: the preset's")
    parser.add_argument("--engine", default="ds_configs/cpu.json", help="DeepSpeed configuration")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args, start = parse(argv), time.monotonic()
    check_output(ROOT / args.run, option="--run", folder=True)
    if not (ROOT / args.data / "val.json").exists():
        run("-m", "preprocess.beton", "--out", args.data, "--demo-images", str(args.images))
    if (ROOT / args.run / "config.yaml").exists():
        shutil.rmtree(ROOT / args.run)  # an earlier run; the trainer refuses any other content
    epochs = [] if args.epochs is None else ["--epochs", str(args.epochs)]
    guarded = ["launch/guard.py", sys.executable, Path(sys.executable).with_name("deepspeed")]
    pretrain = ["launch/pretrain.py", "--deepspeed_config", args.engine, "--config", "demo"]
    run(*guarded, "--num_gpus", "1", *pretrain, "--data", args.data, "--run", args.run, *epochs)
    run("-m", "preprocess.preview", args.data / "train.beton", "--out", args.run / SHEET)
    run("launch/lineval.py", "--ckpt", args.run, "--data", args.data, "--random")
    print(summary(ROOT / args.data, ROOT / args.run, took_s=time.monotonic() - start))
    return 0


def summary(data: Path, folder: Path, *, took_s: float) -> str:
    """Return what was made and reached, read from the files that the commands left."""
    manifest = json.loads((data / "train.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
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
    rows |= {name: str(folder / name) for name in ("tensorboard", "checkpoints", SHEET)}
    rows["took"] = format_seconds(took_s)
    return "\nsummary\n" + "\n".join(f"  {name:20}{value}" for name, value in rows.items())


if __name__ == "__main__":
    run_main(main)
