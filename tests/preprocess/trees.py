"""Trees of masks as tests make and read them."""

from __future__ import annotations

import json
from pathlib import Path

from harl_fast.data.container.manifest import Manifest, read_manifest
from preprocess import beton
from preprocess.masks import __main__ as program


def make(data: Path, out: Path, *options: str) -> None:
    assert program.main(["--data", str(data), "--out", str(out), "--workers", "1", *options]) == 0


def converted(data: Path, out: Path, *options: str) -> Manifest:
    fixed = ["--data", str(data), "--out", str(out), "--workers", "1"]
    assert beton.main([*fixed, *options]) == 0
    return read_manifest(out / "train.beton")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder).with_suffix("")): path.read_bytes()
        for path in folder.rglob("*.png")
    }


def replaced(out: Path) -> dict[str, str]:
    report = json.loads((out / "train.report.json").read_text())
    return {item["path"]: item["reason"] for item in report["masks_replaced"]}
