"""Run a training under a launcher and tell the truth about it: `python launch/guard.py COMMAND`.

DeepSpeed's launcher does not pass signals on to its ranks in a way that lets them save and still
ends with code 0, and ends with 0 if a part of it is killed. This passes SIGTERM, SIGHUP, SIGINT and
SIGUSR1 on to the ranks of COMMAND as SIGUSR1, or by a file where they are not below this process
(pdsh, srun), and takes the exit code from the marker in COMMAND's --run folder: 0 for a new
`finished` or `preempted` one (130 after SIGINT), never 0 without one, nor for `preempted` if a rank
died. Should this process be killed, the ranks save and leave themselves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

from harl_fast.engine.ranks import FarRanks, markers, ranks_below, run_folder, send, was_lost
from harl_fast.errors import one_line
from harl_fast.files import to_stderr
from harl_fast.host import has_gpu_driver
from harl_fast.supervision import adopt_orphans, guard_variable, heeds_hangup

IMPATIENT_S = 5.0  # how long ranks have after a second SIGINT, which ends them without a save
LONELY_S = 30.0  # how long a signal waits for ranks: a command without any gets it itself


def main(command: list[str]) -> int:
    ranks, got, ending_s, told_s = set[psutil.Process](), list[int](), 0.0, 0.0
    before = markers(folder := run_folder(command, about=__doc__ or ""))
    far = FarRanks(folder)
    adopt_orphans()  # ranks are found below this process even if their launcher is gone
    for number in (signal.SIGTERM, signal.SIGINT, *[signal.SIGHUP] * heeds_hangup()):
        signal.signal(number, lambda number, frame: got.append(number))
    # Inherited, for it would end the launcher, which does not know it. Ranks set their own answer,
    # and hear nothing before: they are told repeatedly.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Or DeepSpeed's launcher says at length that it found no GPU.
    device = {} if has_gpu_driver() else {"DS_ACCELERATOR": "cpu"}
    env = device | os.environ | guard_variable()
    try:
        child = subprocess.Popen(command, start_new_session=True, env=env)
    except OSError as error:
        sys.exit(one_line(f"error: {command[0]} cannot be started: {error.strerror}"))
    signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    while (code := child.poll()) is None:
        time.sleep(0.2)
        ranks |= ranks_below(os.getpid())
        told_s = told_s or (time.monotonic() if got else 0.0)
        lonely = bool(got) and not ranks and not far.ask()
        if lonely and time.monotonic() - told_s > LONELY_S:
            send([psutil.Process(child.pid)], got[0])
        elif got.count(signal.SIGINT) < 2:
            send(ranks if got else (), signal.SIGUSR1)
        elif not ending_s:  # once: they note in run.json how they ended
            send(ranks, signal.SIGINT)
            ending_s = time.monotonic()
        elif time.monotonic() - ending_s > IMPATIENT_S:
            send([*ranks, psutil.Process(child.pid)], signal.SIGKILL)
    ranks |= ranks_below(os.getpid())
    lost = any(rank.is_running() for rank in ranks)  # without a launcher, or parts of it
    send(ranks, signal.SIGUSR1)
    send(psutil.wait_procs(ranks, timeout=30)[1], signal.SIGKILL)
    new = [path for path, now in markers(folder).items() if before.get(path) != now]
    lost = not got and (lost or any(map(was_lost, new)))
    good = [path for path in new if got or not code or path.name == "finished"]
    if got.count(signal.SIGINT) > 1 or (good and not lost):
        return 130 if signal.SIGINT in got else 0
    if code <= 0:
        why = "its launcher died" if lost else "it has no new marker"
        to_stderr(f"error: {folder}: {why}: the job did not end well")
    return code if code > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
