"""A pretraining whose second rank fails at its third step: it raises, or stops answering.

Or it does not fail at all ("none"): a job that starts fast, for no decoder is compiled.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import harl_fast.engine.views
from harl_fast.engine.trainer import Stepper
from harl_fast.program import run_main
from launch.pretrain import main
from tests.engine.support import BATCH, FakeLoader


def sabotage(way: str) -> None:
    """Make this process's second rank fail in the given way; no container is read."""
    advance = Stepper.advance

    def patched(self: Stepper, *args: Any, **kwargs: Any) -> None:
        if way != "none" and self.step == 2 and os.environ["RANK"] == "1":
            if way == "raise":
                raise RuntimeError("sabotage")
            # As deaf to Python as a blocked system call, but without the launcher's 30 s of grace.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(600)
        advance(self, *args, **kwargs)

    Stepper.advance = patched  # type: ignore[method-assign]
    ranks = int(os.environ.get("WORLD_SIZE", "1"))  # of a launcher, or one without
    stand_in = FakeLoader(micro=BATCH // 2, ranks=ranks)
    harl_fast.engine.views.build_loader = lambda *args, **kwargs: stand_in  # type: ignore[assignment,return-value]


if __name__ == "__main__":
    sabotage(sys.argv.pop())
    sys.argv += ["--set", "data.colour=device"]  # the stand-in for the loader does not colour
    run_main(main)
