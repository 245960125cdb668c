"""Every program: quick help, all that is missing named at once, and Ctrl-C in one line."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from harl_fast.data.container.manifest import read_manifest
from tests.engine.saved import checkpoint
from tests.engine.support import BATCH, CPU, tiny_file
from tests.engine.tuning import write_sets
from tests.preprocess.support import image_folder
from tests.programs import BENCHMARKS, PROGRAMS, started
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
    "preprocess.masks.check": "--method",
    "preprocess.masks.selftrained.train": "--data --out",
    "preprocess.preview": "FILE.beton",
    "preprocess.verify": "FILE.beton",
}
NEEDS_NOTHING = {"harl_fast.doctor", "harl_fast.plan", "launch/demo.py", "launch/evidence.py"}


@pytest.mark.parametrize("program", [*PROGRAMS, *BENCHMARKS, "examples/minimal.py"])
def test_help_is_there_at_once(program: str) -> None:
    """Within a second of the processor's time, however busy the machine, and without torch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    job = started("-c", HELP, program)
    out, errors = job.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert job.returncode == 0 and out.startswith("usage: "), errors
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize("program", NEEDED)
def test_all_that_is_wrong_with_a_command_line_is_named_at_once(program: str) -> None:
    guard = program == "launch/guard.py"  # its other words are the job's
    job = started(*PROGRAMS[program], *([] if guard else ["--unheard-of=1"]))
    _, errors = job.communicate()
    assert job.returncode in (1, 2) and "Traceback" not in errors
    said = errors.splitlines()[-1]
    wrong = NEEDED[program].split() + ["--unheard-of=1"] * (not guard)
    assert [name for name in wrong if not re.search(rf"(?<![\w-]){name}(?![\w-])", said)] == []


def test_no_program_is_forgotten() -> None:
    assert set(PROGRAMS) == {*NEEDED, *NEEDS_NOTHING}


AT_IMPORT = """
import os, runpy, signal, sys
library, *sys.argv = sys.argv[1:]
def look(event, args):
    global library
    if event == "import" and args[0] == library and "harl_fast.program" in sys.modules:
        library = ""
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(look)
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
run(sys.argv[0], run_name="__main__")
"""
SOON_OVER = {"harl_fast.tools.compare", "preprocess.balanced"}
LONG = sorted(set(PROGRAMS) - SOON_OVER - {"launch/guard.py", "harl_fast.tools.demo_report"})
"""Programs that take longer than a second; the guard hands signals on, the report needs two runs.
"""
OF_OTHERS = {"harl_fast.doctor", "launch/cifar10.py", "launch/demo.py"}
"""Of these, what starts other processes and imports no large library itself."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str | Path]]:
    """Return a command line of each program that takes longer than a second."""
    place = tmp_path_factory.mktemp("interrupted")
    images = image_folder(place / "images", train=60, val=30)
    sets, run = write_sets(place / "sets"), place / "run"
    checkpoint(run, arch="resnet18")
    digests = {
        f"{split}_sha256": read_manifest(sets / f"{split}.beton").beton_sha256
        for split in ("train", "val")
    }
    make_result(run / "eval" / "one", accuracy=0.7, data=digests)
    trained = ["--deepspeed_config", CPU, "--data", sets, "--run", place / "new"]
    batch = ["--engine-set", f"train_batch_size={BATCH}"]
    return {
        "harl_fast.doctor": [],
        "harl_fast.plan": [],
        "harl_fast.tools.evidence_scores": [
            *("photos", "--data", sets, "--ckpt", run, "--out", place / "scores.json")
        ],
        "harl_fast.tools.export": ["--ckpt", run, "--out", place / "exported"],
        "harl_fast.tools.pictures": [run / "eval" / "one", "--data", sets],
        "harl_fast.tools.rescale": ["--ckpt", run, "--factor", "2", "--out", place / "rescaled"],
        "launch/cifar10.py": ["--data", images, "--out", place / "cifar10", "--run", place / "new"],
        "launch/demo.py": ["--quick", "--data", place / "demo", "--run", place / "new"],
        "launch/evidence.py": ["--quick", "--out", place / "evidence"],
        "launch/finetune.py": [*trained, "--ckpt", run, "--preset", "full"],
        "launch/lineval.py": ["--ckpt", run, "--data", sets, "--random"],
        "launch/pretrain.py": [*trained, *batch, "--config", tiny_file(place), "--epochs", "99"],
        "preprocess.beton": ["--data", images, "--out", place / "beton"],
        "preprocess.masks": ["--data", images, "--out", place / "masks"],
        "preprocess.masks.check": ["--method", "all", "heuristic"],
        "preprocess.masks.selftrained.train": ["--data", images, "--out", place / "w.safetensors"],
        "preprocess.preview": [sets / "train.beton", "--out", place / "sheet.png"],
        "preprocess.verify": ["--deep", sets / "train.beton"],
    }


def check_interrupted(job: subprocess.Popen[str]) -> None:
    _, errors = job.communicate()
    assert job.returncode in (130, -signal.SIGINT), errors  # which is 130 to a shell
    assert "Traceback" not in errors
    assert len(re.findall("^interrupted|^stopped by Ctrl-C", errors, re.MULTILINE)) == 1, errors


@pytest.mark.parametrize("library", ["pydantic", "torch"])
@pytest.mark.parametrize("program", sorted(set(LONG) - OF_OTHERS))
def test_an_interrupt_while_libraries_are_imported_is_one_line(
    program: str, library: str, commands: dict[str, list[str | Path]]
) -> None:
    job = started("-c", AT_IMPORT, library, program, *map(str, commands[program]))
    check_interrupted(job)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 3])
@pytest.mark.parametrize("program", LONG)
def test_an_interrupt_of_the_work_is_one_line(
    program: str, seconds: int, commands: dict[str, list[str | Path]]
) -> None:
    job = started(*PROGRAMS[program], *map(str, commands[program]))
    try:
        job.wait(seconds)
    except subprocess.TimeoutExpired:
        job.send_signal(signal.SIGINT)
        check_interrupted(job)
