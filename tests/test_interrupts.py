"""Interrupts are repeated until they take effect, and not any longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_repetition_of_an_interrupt_comes_after_the_program() -> None:
    """It would end in a traceback, as nothing turns it into a line there."""
    body = """
import os, signal, threading
import harl_fast.program as program
late, sending, left, kill = [], threading.Event(), threading.Event(), os.kill
signal.signal(signal.SIGTERM, lambda *_: late.append(1))
def slowly(*signal):  # for the program to end between a look whether it has and the sending
    sending.set()
    left.wait(0.5)
    kill(*signal)
os.kill = slowly
try:
    with program._interrupts() as end:
        try:
            kill(os.getpid(), signal.SIGTERM)
        finally:
            sending.wait()
            end()
except KeyboardInterrupt:
    left.set()
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join()
print(len(late))
"""
    done = subprocess.run([sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
