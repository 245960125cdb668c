"""Every program: quick help, all that is missing named at once, and Ctrl-C in one line."""

from __future__ import annotations

import re
import resource
import signal
import time
from pathlib import Path

import pytest

from tests.engine.saved import checkpoint
from tests.engine.support import BATCH, CPU, tiny_file
from tests.engine.tuning import write_sets
from tests.preprocess.support import image_folder
from tests.programs import PROGRAMS, started
from tests.tools.results import make_result

HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
try:
    run(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert end.code == 0
large = {"torch", "torchvision", "ffcv", "deepspeed", "numba"} & sys.modules.keys()
assert not large, large
"""
NEEDED = {
    "launch/cifar10.py": "--data",
    "launch/finetune.py": "--deepspeed_config --ckpt --data --run",
    "launch/guard.py": "--run",
    "launch/lineval.py": "--ckpt --data",
    "launch/pretrain.py": "--deepspeed_config --config --data --run",
    "harl_fast.tools.compare": "RESULT --out",
    "harl_fast.tools.demo_report": "--data --without --with --out",
    "harl_fast.tools.evidence_scores": "kind --data --out",
    "harl_fast.tools.export": "--ckpt --out",
    "harl_fast.tools.pictures": "RESULT",
    "harl_fast.tools.rescale": "--ckpt",
    "preprocess.balanced": "FOLDER --count --out",
    "preprocess.beton": "--out",
    "preprocess.masks": "--data --out",
    "preprocess.masks.selftrained.train": "--data --out",
    "preprocess.preview": "FILE.beton",
    "preprocess.verify": "FILE.beton",
}
NEEDS_NOTHING = {"harl_fast.doctor", "harl_fast.plan", "launch/demo.py", "launch/evidence.py"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_there_at_once(program: str) -> None:
    """Within a second of the processor's time, however busy the machine, and without torch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    job = started("-c", HELP, program)
    out, errors = job.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert job.returncode == 0 and out.startswith("usage: "), errors
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize("program", NEEDED)
def test_all_that_a_command_line_misses_is_named_at_once(program: str) -> None:
    job = started(*PROGRAMS[program])
    _, errors = job.communicate()
    assert job.returncode in (1, 2) and "Traceback" not in errors
    said = errors.splitlines()[-1]
    assert all(re.search(rf"(?<![\w-]){name}(?![\w-])", said) for name in NEEDED[program].split())


def test_no_program_is_forgotten() -> None:
    assert set(PROGRAMS) == {*NEEDED, *NEEDS_NOTHING}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str | Path]]:
    """Return command lines of all programs that take longer than a second."""
    place = tmp_path_factory.mktemp("interrupted")
    images = image_folder(place / "images", train=60, val=30)
    sets, run, out = write_sets(place / "sets"), place / "run", place / "out"
    checkpoint(run, arch="resnet18")
    for name in ("one", "two"):
        make_result(run / "eval" / name, accuracy=0.7)
    engine = ["--deepspeed_config", CPU]
    trained = ["--data", sets, "--run", place / "new"]
    batch = ["--engine-set", f"train_batch_size={BATCH}"]
    return {
        "harl_fast.doctor": [],
        "harl_fast.plan": [],
        "harl_fast.tools.evidence_scores": [
            *("photos", "--data", sets, "--ckpt", run, "--out", place / "scores.json")
        ],
        "harl_fast.tools.export": ["--ckpt", run, "--out", out],
        "harl_fast.tools.pictures": [run / "eval" / "one", "--data", sets],
        "harl_fast.tools.rescale": ["--ckpt", run, "--factor", "2", "--out", out],
        "launch/cifar10.py": ["--data", images, "--out", out, "--run", place / "new"],
        "launch/demo.py": ["--quick", "--data", out, "--run", place / "new"],
        "launch/evidence.py": ["--quick", "--out", out],
        "launch/finetune.py": [*engine, "--ckpt", run, *trained, "--preset", "full"],
        "launch/lineval.py": ["--ckpt", run, "--data", sets, "--random"],
        "launch/pretrain.py": [*engine, *trained, *batch, "--config", tiny_file(place)],
        "preprocess.beton": ["--data", images, "--out", out],
        "preprocess.masks": ["--data", images, "--out", out],
        "preprocess.masks.selftrained.train": ["--data", images, "--out", out / "w.safetensors"],
        "preprocess.preview": [sets / "train.beton", "--out", out / "sheet.png"],
        "preprocess.verify": ["--deep", sets / "train.beton"],
    }


def libraries(process: int) -> set[str]:
    """Return which of the large libraries a process has begun to load."""
    text = Path(f"/proc/{process}/maps").read_text()
    return {name for name in ("multiarray", "libtorch") if name in text}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
@pytest.mark.parametrize(
    "seconds", [0.1, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 3))]
)
@pytest.mark.parametrize(
    "program",
    sorted(
        set(PROGRAMS)
        - {
            "preprocess.balanced",
            "launch/guard.py",
            "harl_fast.tools.compare",
            "harl_fast.tools.demo_report",
        }
    ),
)
def test_an_interrupt_at_any_moment_is_one_line(
    program: str, seconds: float, commands: dict[str, list[str | Path]]
) -> None:
    job = started(*PROGRAMS[program], *map(str, commands[program]))
    end = time.monotonic() + seconds
    while time.monotonic() < end and job.poll() is None:
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate()
    print(program, seconds, job.returncode, repr(errors))
