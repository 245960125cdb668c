"""A checkpoint's features judged on a folder of containers, from paths to a result file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harl_fast.data.container.manifest import containers_in
from harl_fast.engine.checkpoint.format import Checkpoint
from harl_fast.engine.networks import encoder_of, open_to_use, random_encoder
from harl_fast.engine.provenance import code_version
from harl_fast.engine.runfolder import check_apart
from harl_fast.errors import one_line
from harl_fast.eval.protocol import Evaluator, table
from harl_fast.files import check_output
from harl_fast.lock import lock_beside, locked
from harl_fast.results import write_result


def lineval(
    *,
    ckpt: Path,
    data: Path,
    random: bool,
    size_px: int | None,
    epochs: int,
    batch: int,
    workers: int,
    seed: int,
    out: Path | None,
) -> int:
    """Judge the checkpoint's encoder, and a random one if asked; print and write the result.

    See launch/lineval.py for the arguments. Returns the exit code; raises HarlError.
    """
    out = out or (ckpt if ckpt.is_dir() else ckpt.parent) / "lineval.json"
    checkpoint = open_to_use(ckpt)
    containers = [each for split in ("train", "val") for each in containers_in(data, split)]
    check_output(out, option="--out", inputs=[checkpoint.path, *containers])
    check_apart(out, option="--out")
    with locked(lock_beside(out), output=out):
        encoder, config = encoder_of(checkpoint)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        half = torch.bfloat16 if device.type == "cuda" else None
        evaluator = Evaluator(
            data,
            size_px=size_px or config.data.views[0].size_px,
            mean=config.data.mean,
            std=config.data.std,
            device=device,
            batch=batch,
            workers=workers,
        )
        encoders = {"pretrained": encoder}
        if random:
            encoders["random"] = random_encoder(config, seed=seed)
        results = {
            name: evaluator(model, epochs=epochs, seed=seed, label=name, autocast=half)
            for name, model in encoders.items()
        }
        settings = {"epochs": epochs, "seed": seed, "random": random, "autocast": str(half)}
        write_result(
            out,
            {name: result.record() for name, result in results.items()},
            provenance={
                "checkpoint": _facts(checkpoint),
                "data": evaluator.data_facts(),
                "settings": settings | evaluator.settings(),
                "code": code_version(),
                "torch": torch.__version__,
            },
            name=f"{data.resolve().name}-{checkpoint.path.stem}",
        )
        # A full disk of the log takes nothing of the result.
        print(table(results, chance=evaluator.chance()))
        print(one_line(f"result: {out}"))
    return 0


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    record = checkpoint.record
    known = record.model_dump(mode="json", exclude={"config", "engine", "loader", "ranks"})
    return {"file": str(checkpoint.path.resolve()), **known}
