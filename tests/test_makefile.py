"""Variables of the Makefile: which are refused, and what they become on command lines."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENV = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
"""Without what an outer `make test` hands down, its variables and that it says where it is."""


@pytest.mark.parametrize(
    ("ranks", "code"), [("1", 0), ("16", 0), ("", 0), ("0", 2), ("-1", 2), ("two", 2), ("1.5", 2)]
)
def test_ranks_is_a_number_from_one_up(ranks: str, code: int) -> None:
    listed = subprocess.run(
        ["make", "-n", "-o", "setup", "pretrain", f"RANKS={ranks}"],
        cwd=ROOT, env=ENV, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    check = next(line for line in listed if line.startswith("case"))
    result = subprocess.run(["bash", "-c", check], capture_output=True, text=True)
    assert result.returncode == code
    assert result.stderr == (f"RANKS={ranks} is no number from 1 up\n" if code else "")


def planned(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Return what make would run, or its error."""
    command = ["make", "-n", "-o", "setup", *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "takes"),
    [
        (("pretrain", "BACTH=32"), "BATCH LR WORKERS"),
        (("beton", "LR=0.1"), "DATASET OUT MASKS"),
        (("lint", "EPOCHS=3"), "PYTHON"),
        (("X=1",), "VENV"),
    ],
)
def test_a_variable_that_a_target_does_not_take_is_an_error(
    arguments: tuple[str, ...], takes: str
) -> None:
    result = planned(*arguments)
    name = arguments[-1].partition("=")[0]
    assert result.returncode == 2 and result.stdout == ""
    assert f"{name}= is no variable of" in result.stderr and takes in result.stderr


@pytest.mark.parametrize(
    ("target", "name"),
    [("demo", "QUICK"), ("evidence", "QUICK"), ("lineval", "RANDOM"), ("pretrain", "RESUME")],
)
@pytest.mark.parametrize("value", ["0", "no", "false", "1 0"])
def test_a_switch_takes_1_or_nothing(target: str, name: str, value: str) -> None:
    result = planned(target, f"{name}={value}")
    assert result.returncode == 2 and result.stdout == ""
    assert f"{name}={value}: give {name}=1, or leave it out" in result.stderr
    option = f"--{name.lower()}"
    assert option in planned(target, f"{name}=1").stdout
    assert option not in planned(target, f"{name}=").stdout


def test_the_program_that_judges_draws_what_it_found() -> None:
    """Only it knows the name: DATA can be a link, PROTOCOL stand in ARGS, CKPT be a step file."""
    arguments = ("lineval", "CKPT=runs/x", "DATA=data/pets/", "PROTOCOL=logreg")
    assert "pictures" not in planned(*arguments).stdout
    (command,) = planned(*arguments, "PICTURES=1").stdout.replace("\\\n", "").splitlines()
    assert "launch/lineval.py" in command and "--pictures" in command


@pytest.mark.parametrize(
    ("ckpt", "run"),
    [
        ("runs/x", "runs/x"),
        ("runs/x/", "runs/x"),
        ("/my drive/x/", "/my drive/x"),
        ("runs/x/checkpoints", "runs/x"),
        ("runs/x/checkpoints/step-00000010.safetensors", "runs/x"),
        ("/checkpoints/x", "/checkpoints/x"),
        ("resnet50.pth", "resnet50.pth"),
    ],
)
def test_what_is_made_of_a_checkpoint_is_named_after_its_run(ckpt: str, run: str) -> None:
    """And goes beside the run, never into it."""
    assert f'--run "{run}-full"' in planned("finetune", f"CKPT={ckpt}", "DATA=d").stdout
    assert f'--out "exports/{Path(run).name}-folder"' in planned("export", f"CKPT={ckpt}").stdout


def test_paths_with_spaces_have_one_last_part() -> None:
    assert '--out "exports/a run-folder"' in planned("export", "CKPT=/my drive/a run").stdout
    printed = planned("finetune", "CKPT=runs/x", "DATA=d", "PRESET=/my presets/a b.yaml").stdout
    assert '--run "runs/x-a b"' in printed


def test_batch_rate_and_workers_reach_the_program() -> None:
    printed = planned("pretrain", "BATCH=32", "LR=0.1", "WORKERS=2", "VENV=/x").stdout
    for option in (
        '--engine-set "train_batch_size=32"',
        '--set "optim.lr=0.1"',
        '--set "data.workers=2"',
    ):
        assert option in printed
    assert '--workers "2"' in planned("beton", "WORKERS=2").stdout


def test_what_is_given_of_a_result_or_of_cifar10_reaches_the_program() -> None:
    printed = planned("cifar10", "DATA=/x y", "EPOCHS=1", "IMAGES=5000").stdout
    for option in ('--data "/x y"', '--epochs "1"', '--images "5000"', "ds_configs/cpu.json"):
        assert option in printed
    assert "--out" not in printed and "--run" not in printed  # the program's own
    assert '--out "/o"' in planned("cifar10", "DATA=/x", "OUT=/o").stdout
    assert (
        '"r/eval/x-logreg" --data "d"'
        in planned("pictures", "RESULT=r/eval/x-logreg", "DATA=d").stdout
    )
    assert "compare runs/a runs/b" in planned("compare", "RESULTS=runs/a runs/b").stdout


def test_what_is_asked_of_the_evidence_reaches_the_program() -> None:
    printed = planned("evidence", "DATA=/x y", "ONLY=photos composites/exact", "SEEDS=2").stdout
    for option in ('--data "/x y"', "--only photos composites/exact", '--seeds "2"'):
        assert option in printed
    assert "--" not in planned("evidence").stdout.partition("launch/evidence.py")[2]


def test_the_place_for_copies_reaches_both_trainings() -> None:
    for target in ("pretrain", "finetune"):
        assert '--stage-to "/scratch"' in planned(target, "STAGE_TO=/scratch").stdout
        assert "--stage-to" not in planned(target).stdout


def test_a_gpu_check_writes_where_it_is_told() -> None:
    for target in ("gpu-check", "gpu-wheels"):
        assert "--out" not in planned(target).stdout
        assert '--out "/x y"' in planned(target, "OUT=/x y").stdout


def test_a_resumed_fine_tuning_needs_no_checkpoint() -> None:
    resumed = planned("finetune", "RESUME=1", "RUN=runs/x-full").stdout
    assert '--run "runs/x-full"' in resumed and "--ckpt" not in resumed
    assert '--ckpt "runs/x"' in planned("finetune", "RESUME=1", "CKPT=runs/x").stdout
    assert '--ckpt "runs/demo"' in planned("finetune").stdout


def test_lineval_judges_on_the_set_that_is_named(tmp_path: Path) -> None:
    listed = planned("lineval", "DATASET=dtd", f"OUT={tmp_path}").stdout
    check = listed[listed.index("grep ") :].partition("exit 2; }")[0] + "exit 2; }"
    for source, code in (("dtd", 0), ("dtd2", 2)):
        (tmp_path / "val.json").write_text(f'{{\n  "source": "{source}",\n  "x": 1\n}}')
        done = subprocess.run(["bash", "-c", check], capture_output=True, text=True)
        assert done.returncode == code
        assert ("holds another set than DATASET=dtd" in done.stderr) == bool(code)
    two = planned("lineval", "DATASET=dtd", "DATA=x").stdout
    assert two.startswith('echo "DATA= and DATASET= name two sets')
    assert "name two sets" not in planned("lineval", "DATA=x").stdout


def test_every_target_lists_its_variables() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {line.partition(":")[0] for line in text.splitlines() if ": setup ##" in line}
    lacking = {target for target in targets if f"\nTAKES_{target} = " not in text}
    assert len(targets) > 10 and not lacking


def test_preview_takes_the_configuration_of_the_run(tmp_path: Path) -> None:
    """In a folder that holds a run: it, unless another one or a preset is named."""
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    (tmp_path / "runs/set").mkdir(parents=True)
    (tmp_path / "runs/set/config.yaml").touch()
    for options, expected in (
        (["OUT=data/set"], '--config "runs/set/config.yaml"'),
        (["OUT=data/set", "RUN=runs/a b"], '--config "runs/a b/config.yaml"'),
        (["OUT=data/set", "CONFIG=paper"], '--config "paper"'),
        (["OUT=data/other"], ""),
    ):
        printed = planned("-C", str(tmp_path), "preview", *options).stdout
        assert "preprocess.preview" in printed
        assert expected in printed and printed.count("--config") == bool(expected)


@pytest.mark.parametrize("name", ["DATA", "ADD", "DATASET", "MASKS"])
def test_a_source_that_is_given_and_empty_is_not_another_one(name: str) -> None:
    result = planned("beton", f"{name}=", "OUT=data/mine")
    assert result.returncode == 2 and result.stdout == ""
    assert f"{name}= is empty" in result.stderr
