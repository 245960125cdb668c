"""Two ranks that are told to resume a run whose folder this process holds: ``... OUT``.

It prints their exit codes; what they say is in OUT/log.
"""

from __future__ import annotations

import sys
from pathlib import Path

import harl_fast.engine.views
from harl_fast.engine.runfolder import write_configs
from harl_fast.lock import locked
from harl_fast.runfiles import RunFolder
from tests.engine.support import BATCH, CPU, FakeLoader, engine_config, tiny_config
from tests.launch.attempts import attempt


def main(out: Path) -> None:
    """Hold the folder, and let the two try."""
    stand_in = FakeLoader(micro=BATCH // 2)
    harl_fast.engine.views.build_loader = lambda *args, **kwargs: stand_in  # type: ignore[assignment,return-value]
    folder = RunFolder(out / "run")
    write_configs(folder, tiny_config(out), engine_config())
    command = ["--deepspeed_config", CPU, "--data", out, "--run", folder.path, "--resume"]
    command += ["--engine-set", f"train_batch_size={BATCH}"]
    with locked(folder.lock, output=folder.path):
        print(attempt(command, ranks=2, log=out / "log"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
