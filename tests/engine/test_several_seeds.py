"""Fine-tuning repeated with several seeds: their table, and which one it replaces."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from harl_fast.engine import session
from harl_fast.engine.finetune import Finetuning
from harl_fast.engine.machine import Machine
from harl_fast.errors import ConfigError
from harl_fast.tools.seeds import compare_any
from tests.engine.tuning import result_of, saved, trained_further, tune


def test_seeds_give_mean_and_deviation(
    machine: Machine, run: Path, sets: Path, tmp_path: Path
) -> None:
    flags = {"train_epochs": 1, "random": True}
    marked = []

    def stop() -> None:
        ends = ("run/finished", "run/seed-0/finished", "run/seed-1/finished")
        marked.append([(tmp_path / end).is_file() for end in ends])

    assert tune(tmp_path / "run", ckpt=run, data=sets, flags=flags, seeds=2, stop=stop) == 0
    assert marked == [[True] * 3]  # before the only end of the groups, at which a rank may abort
    table = json.loads((tmp_path / "run" / "seeds.json").read_text())
    each = [result_of(tmp_path / "run" / f"seed-{n}")["metrics"]["top1"]["value"] for n in (0, 1)]
    assert table["metrics"]["top1"] == each
    assert table["summary"]["top1"]["mean"] == pytest.approx(sum(each) / 2)
    assert (tmp_path / "run" / "finished").exists()
    first, second = (saved(tmp_path / "run" / f"seed-{n}") for n in (0, 1))
    name = "online.backbone.conv1.weight"
    assert not torch.equal(first[name], second[name])
    flags["random"] = False
    assert tune(tmp_path / "other", ckpt=run, data=sets, flags=flags, seeds=2) == 0
    others = json.loads((tmp_path / "other" / "seeds.json").read_text())["metrics"]["top1"]
    base, other = compare_any([tmp_path / "run", tmp_path / "other"]).entries
    assert base.result.metrics["top1"].value == pytest.approx(sum(each) / 2)
    assert other.differences["top1"].value == pytest.approx((sum(others) - sum(each)) / 2)


def test_what_other_seeds_or_settings_gave_is_kept_and_said(
    machine: Machine, run: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, flags = tmp_path / "run", {"train_epochs": 1, "random": True}
    assert tune(place, ckpt=run, data=sets, flags=flags, seeds=2) == 0
    first = json.loads((place / "seeds.json").read_text())
    again = {"ckpt": None, "data": sets, "seeds": 2, "resume": True}
    assert tune(place, flags=flags, **again) == 0
    assert json.loads((place / "seeds.json").read_text())["metrics"] == first["metrics"]
    assert tune(place, flags=flags, **again, mode="train") == 0  # judges nothing
    assert json.loads((place / "seeds.json").read_text())["metrics"] == first["metrics"]
    assert "kept as" not in capsys.readouterr().out
    others = flags | {"seed": 2, "learning_rate": 0.01}
    assert tune(place, ckpt=run, data=sets, flags=others, seeds=2) == 0
    assert json.loads((place / "seeds.json").read_text())["seeds"] == [2, 3]
    kept = place / "seeds-seeds_0_1.json"
    assert json.loads(kept.read_text())["metrics"] == first["metrics"]
    assert f"seeds, settings; kept as {kept}" in capsys.readouterr().out


def test_the_stop_file_of_a_folder_of_seeds_ends_the_seed_under_way(
    machine: Machine, run: Path, sets: Path, tmp_path: Path
) -> None:
    place, flags = tmp_path / "run", {"train_epochs": 1, "random": True}
    place.mkdir()
    (place / "stop").touch()
    assert tune(place, ckpt=run, data=sets, flags=flags, seeds=2) == 0
    assert {path.name for path in place.iterdir()} == {"preempted", "seed-0"}
    note = json.loads((place / "preempted").read_text())
    assert (note["step"], note["reason"]) == (1, "seed-0: the file stop")
    (place / "stop").touch()
    os.utime(place / "stop", (0, 0))  # of an earlier start
    assert tune(place, ckpt=run, data=sets, flags=flags, seeds=2, resume=True) == 0
    assert (place / "finished").exists()
    assert not (place / "stop").exists() and not (place / "preempted").exists()


def test_a_rank_of_several_that_is_stopped_before_the_first_step_marks_the_folder_of_seeds(
    run: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    here = Machine(ranks=2, ranks_here=2)
    for module in ("session", "machine"):
        monkeypatch.setattr(f"harl_fast.engine.{module}.this_machine", lambda: here)
    monkeypatch.setattr(session.os, "_exit", leave)
    monkeypatch.setattr(
        Finetuning, "decide", lambda *arguments: os.kill(os.getpid(), signal.SIGUSR1)
    )
    place = tmp_path / "run"
    with pytest.raises(SystemExit, match="0"):
        tune(place, ckpt=run, data=sets, seeds=2)
    for folder, reason in ((place, "seed-0: SIGUSR1"), (place / "seed-0", "SIGUSR1")):
        assert json.loads((folder / "preempted").read_text())["reason"] == reason


def test_a_signal_between_two_seeds_stops_the_next_one(
    machine: Machine, run: Path, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = session.mark

    def mark(marker: Path, *, step: int, reason: str) -> None:
        marks(marker, step=step, reason=reason)
        if marker.name == "finished":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(session, "mark", mark)
    place, flags = tmp_path / "run", {"train_epochs": 1, "random": True}
    assert tune(place, ckpt=run, data=sets, flags=flags, seeds=2) == 0
    assert (place / "seed-0" / "finished").exists() and (place / "seed-1" / "preempted").exists()
    assert json.loads((place / "preempted").read_text())["reason"] == "seed-1: SIGTERM"


def test_seeds_that_have_not_begun_are_trained_like_those_that_have(
    machine: Machine, run: Path, sets: Path, tmp_path: Path
) -> None:
    """Otherwise a stopped job goes on with the settings of none, and means are of other things."""
    place = tmp_path / "run"
    place.mkdir()
    (place / "stop").touch()
    assert tune(place, ckpt=run, data=sets, seeds=2) == 0
    before = saved(place / "seed-0")
    again = {"data": sets, "seeds": 2, "resume": True}
    none = dict.fromkeys(("train_epochs", "optimizer", "learning_rate", "learning_rate_scaling"))
    further = trained_further(run, tmp_path / "further")
    for changes, message in (
        (
            {"ckpt": run, "flags": none},
            "seed-0 has begun: .* optimizer 'momentum' -> 'lars'.*again",
        ),
        ({"ckpt": run, "engine": ("gradient_clipping=1",)}, "gradient_clipping 0.0 -> 1.0"),
        ({"ckpt": None}, "--ckpt is missing"),
        ({"ckpt": further}, "has other weights"),
        ({"ckpt": run, "flags": {"seed": 5}}, "holds seed-0, and not seed-5: .*--seed"),
    ):
        with pytest.raises(ConfigError, match=message):
            tune(place, **again, **changes)
    assert [each.name for each in place.iterdir() if each.is_dir()] == ["seed-0"]
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in saved(place / "seed-0").items()
    )
    assert tune(place, ckpt=run, **again) == 0
    assert json.loads((place / "seeds.json").read_text())["seeds"] == [0, 1]
