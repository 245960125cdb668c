"""A stand-in for Slurm's srun: ``srun_job.py COMMAND`` runs it twice as Slurm's daemon would.

Only srun's variables tell the processes apart. Signals do not reach them through this one.
"""

from __future__ import annotations

import os
import subprocess
import sys

RANKS = 2

if __name__ == "__main__":
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NODEID": "0"}
    step |= {"SLURM_STEP_NUM_TASKS": str(RANKS), "SLURM_STEP_TASKS_PER_NODE": str(RANKS)}
    step |= {"SLURM_STEP_NODELIST": "localhost"}
    tasks = [
        subprocess.Popen(
            sys.argv[1:],
            env=os.environ | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(RANKS)
    ]
    sys.exit(max(task.wait() for task in tasks))
