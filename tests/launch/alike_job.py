"""Pairs of ranks that find different things, or one of which is refused: ``alike_job.py OUT``.

Exit codes are printed by name; what the ranks say is in OUT/<name>.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harl_fast.engine.lineval
import harl_fast.engine.machine
import harl_fast.engine.views
from harl_fast.engine.checkpoint.format import write_checkpoint
from harl_fast.engine.networks import build_model
from harl_fast.lock import lock_beside, locked
from harl_fast.supervision import Process
from launch.finetune import main as finetune
from launch.lineval import main as lineval
from launch.pretrain import main as pretrain
from tests.engine.support import BATCH, CPU, FakeLoader, engine_config, tiny_config, tiny_file
from tests.engine.tuning import write_sets
from tests.launch.attempts import attempt

Words = Sequence[str | Path]


def write_network(folder: Path, *, scale: float) -> Path:
    """Write a run with a checkpoint whose weights are multiplied; return its folder."""
    (folder / "checkpoints").mkdir(parents=True)
    config = tiny_config(folder)
    harl = build_model(config).state_dict()
    tensors = {f"online.{n}": scale * t if t.is_floating_point() else t for n, t in harl.items()}
    record = {"step": 1, "epoch": 0, "epoch_step": 1, "config": config, "data": {}}
    record["engine"] = engine_config().record()
    write_checkpoint(folder / "checkpoints", tensors=tensors, record=record)
    return folder


class Job:
    """Starts of two ranks, of which the second finds something else."""

    def __init__(self, out: Path) -> None:
        self.out, self.sets = out, write_sets(out / "sets", train=20, val=8)
        self.networks = [write_network(out / f"{scale}", scale=scale) for scale in (1.0, 1.5)]

    def start(
        self,
        name: str,
        main: Callable[[list[str]], int],
        words: Words,
        *,
        own: Sequence[Words] = ((), ()),
        ranks: int = 2,
    ) -> None:
        """Start a program. own: further words of each rank."""

        def program(common: list[str]) -> int:
            return main([*common, *map(str, own[int(os.environ["RANK"])])])

        print(name, attempt(words, ranks=ranks, log=self.out / name, program=program), flush=True)

    def pretraining(self) -> None:
        """Start pretrainings."""
        words = ["--deepspeed_config", CPU, "--config", tiny_file(self.out), "--data", self.out]
        words += ["--run", self.out / "run", "--engine-set", f"train_batch_size={BATCH}"]
        for name, digits, own in (
            ("training sets", "01", ()),
            ("configurations", "00", ["--set", "loss.alpha=0.25"]),
            ("engine files", "00", ["--engine-set", "gradient_clipping=2"]),
        ):
            harl_fast.engine.views.build_loader = self._loader(digits=digits)
            self.start(name, pretrain, words, own=((), own))

    def _loader(self, *, digits: str) -> Any:
        def build(*args: Any, **kwargs: Any) -> FakeLoader:
            loader, digit = FakeLoader(micro=BATCH // 2), digits[int(os.environ["RANK"])]
            loader.manifest = SimpleNamespace(
                **vars(loader.manifest) | {"beton_sha256": digit * 64}
            )
            return loader

        return build

    def judging(self) -> None:
        """Fine-tune and judge two networks; judge where an output is in use, or alone."""
        own = [["--ckpt", network] for network in self.networks]
        words = ["--deepspeed_config", CPU, "--preset", "full", "--train-batch-size", "16"]
        words += ["--data", self.sets, "--run", self.out / "tuned"]
        self.start("pretrained networks", finetune, words, own=own)
        result = self.out / "lineval.json"
        words = ["--data", self.sets, "--knn", "3", "--workers", "1", "--out", result]
        self.start("networks", lineval, words, own=own)
        words += ["--ckpt", self.networks[0]]
        with locked(lock_beside(result), output=result):
            self.start("lock", lineval, words)

        def waiting(*args: Any, **kwargs: Any) -> None:
            time.sleep(60.0)

        harl_fast.engine.lineval.load_pretrained = waiting  # type: ignore[assignment]
        harl_fast.engine.lineval.supervisors = lambda: {"its launcher": Process("0", "")}
        self.start("launcher", lineval, words, ranks=1)


if __name__ == "__main__":
    harl_fast.engine.machine._GRACE_S = 0.5
    job = Job(Path(sys.argv[1]))
    job.pretraining()
    job.judging()
