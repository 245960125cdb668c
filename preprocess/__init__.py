"""Programs that make containers and masks; they use level 0 of `harl_fast` and its data alone."""

import harl_fast.program  # noqa: F401  # with the first import an interrupt becomes one line
from harl_fast import pool

pool.PRELOAD += ["preprocess.beton", "preprocess.demo.render"]  # ffcv brings torch, 3 s a process
