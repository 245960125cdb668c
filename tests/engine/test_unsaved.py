"""Fine-tunings without a checkpoint: they begin as they began, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harl_fast.engine.finetune import linear_protocol
from harl_fast.engine.machine import Machine
from harl_fast.errors import CheckpointError, ConfigError
from harl_fast.options import SEED_MAX
from tests.engine.support import CPU
from tests.engine.tuning import BATCH, trained_further, tune


@pytest.fixture(scope="module")
def finished(
    machine: Machine, run: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a finished fine-tuning of all layers; tests change copies of it."""
    folder = tmp_path_factory.mktemp("unsaved") / "run"
    assert tune(folder, ckpt=run, data=sets) == 0
    return folder


@pytest.fixture
def lost(finished: Path, tmp_path: Path) -> Path:
    """Return a finished run whose checkpoints are gone."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


@pytest.fixture
def unsaved(lost: Path) -> Path:
    """Return a run as a kill before its first checkpoint leaves it."""
    for name in ("finished", "run.json", "metrics.jsonl"):
        (lost / name).unlink()
    shutil.rmtree(lost / "eval")
    return lost


def test_a_finished_run_whose_checkpoints_were_lost_does_not_begin_again(
    lost: Path, sets: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"had one: .*finished says step 12"):
        tune(lost, ckpt=None, data=sets, resume=True)


def test_nothing_is_judged_where_there_is_no_checkpoint(unsaved: Path, sets: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint that could be judged"):
        tune(unsaved, ckpt=None, data=sets, mode="eval")
    assert not (unsaved / "eval").exists()


def test_a_run_begins_again_as_it_began(unsaved: Path, run: Path, sets: Path) -> None:
    with pytest.raises(ConfigError, match=r"differs: learning_rate 0\.05 -> 0\.5"):
        tune(unsaved, ckpt=None, data=sets, resume=True, flags={"learning_rate": 0.5})
    other = trained_further(run, unsaved.parent / "other")
    with pytest.raises(ConfigError, match="has other weights"):
        tune(unsaved, ckpt=other, data=sets, resume=True)
    known = json.loads((unsaved / "provenance.json").read_text())
    known["data"]["ids_sha256"] = "of other images"
    (unsaved / "provenance.json").write_text(json.dumps(known))
    with pytest.raises(ConfigError, match="the training set's subset differs"):
        tune(unsaved, ckpt=None, data=sets, resume=True)
    known["data"] |= {"ids_sha256": "", "protocol": "first"}
    (unsaved / "provenance.json").write_text(json.dumps(known))
    assert tune(unsaved, ckpt=None, data=sets, resume=True) == 0
    assert [path.name for path in (unsaved / "eval").iterdir()] == ["colours-first"]


def test_what_stands_in_the_way_of_any_seed_is_told_before_the_first_is_trained(
    machine: Machine, run: Path, sets: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "seeds"
    with pytest.raises(ConfigError, match="give a smaller --seed"):
        tune(folder, ckpt=run, data=sets, seeds=2, flags={"seed": SEED_MAX})
    (folder / "seed-1").mkdir(parents=True)
    (folder / "seed-1" / "thesis.txt").touch()
    with pytest.raises(CheckpointError, match="seed-1 is not empty"):
        tune(folder, ckpt=run, data=sets, seeds=2)
    assert [path.name for path in folder.iterdir()] == ["seed-1"]


def test_heads_of_other_settings_are_refused_with_what_lineval_can_do(
    machine: Machine, folder: Path, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harl_fast.engine.deepspeed.stop", lambda: None)

    def judge(epochs: int) -> int:
        return linear_protocol(
            preset="byol", ckpt=folder, data=sets, engine_file=CPU, batch=BATCH, epochs=epochs
        )

    assert judge(1) == 0
    with pytest.raises(ConfigError, match=r"1 -> 2\. .*move .*colours-byol away") as told:
        judge(2)
    assert "--allow-change" not in str(told.value) and "--resume" not in str(told.value)
