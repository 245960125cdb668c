"""launch/lineval.py under a real launcher: two ranks find what one finds."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.eval.results import Result, read_result
from tests.engine.tuning import write_sets
from tests.launch.jobs import ROOT, deepspeed, run
from tests.launch.test_finetune import ckpt

__all__ = ["ckpt"]  # a fixture

SCRIPT = Path("launch/lineval.py")


def features(folder: Path) -> dict[str, torch.Tensor]:
    """Return a run's kept features by split and name."""
    return {
        f"{split} {name}": tensor
        for split in ("train", "val")
        for path in (folder / "features").glob(f"pretrained-{split}-*.safetensors")
        for name, tensor in load_file(path).items()
    }


def test_two_ranks_find_what_one_finds(tmp_path: Path, ckpt: Path) -> None:
    sets = write_sets(tmp_path / "colours", train=101)  # an odd number
    options = [SCRIPT, "--ckpt", ckpt, "--data", sets, "--knn", "5,20,90", "--random"]
    options += ["--epochs", "3", "--workers", "1"]
    found, kept = [], []
    for command in ([sys.executable], deepspeed(2)):
        for path in (ckpt / "features").glob("*"):
            path.unlink()
        result = run([*command, *options], log=tmp_path / "log")
        assert result.code == 0, result.text
        assert len(result.lines("preprocessing: ")) == len(result.lines("k-NN")) - 1 == 1
        found.append(read_result(ckpt / "eval" / "colours-cached"))
        kept.append(features(ckpt))
    again = run([*deepspeed(2), *options], log=tmp_path / "log")
    assert again.code == 0 and len(again.lines(" read from ")) == 4, again.text
    one, two = kept
    assert one.keys() == two.keys() and len(one) == 4
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)
    # Neighbours of 90 of 101 samples lie on both ranks.
    for k, metrics in found[0].knn.items():
        assert found[1].knn[k]["top1"].value == pytest.approx(metrics["top1"].value, abs=2.6), k
    assert found[1].metrics["top1"].value == pytest.approx(found[0].metrics["top1"].value, abs=2.6)


@pytest.mark.slow
def test_heads_of_the_linear_protocol_are_the_same_on_two_ranks(tmp_path: Path, ckpt: Path) -> None:
    sets = write_sets(tmp_path / "colours", train=101, val=41)  # odd numbers
    options = ["--deepspeed_config", ROOT / "ds_configs" / "cpu.json", "--data", sets, "--random"]
    options += ["--protocol", "imagenet", "--epochs", "3", "--batch", "16", "--workers", "1"]
    found: list[dict[str, Result]] = []
    for ranks, command in ((1, [sys.executable]), (2, deepspeed(2))):
        place = tmp_path / f"ckpt{ranks}"
        shutil.copytree(ckpt, place, ignore=shutil.ignore_patterns("eval", "features"))
        job = run([*command, SCRIPT, "--ckpt", place, *options], log=tmp_path / "log")
        assert job.code == 0, job.text
        for name in ("colours-seed-readme", "colours-seed-readme-random"):
            assert open_checkpoint(place / "linear" / name).record.ranks == ranks
        names = ("colours-imagenet", "colours-imagenet-random")
        found.append({name: read_result(place / "eval" / name) for name in names})
    for name, one in found[0].items():
        two = found[1][name]
        assert two.ids.tolist() == one.ids.tolist() == list(range(41))
        assert two.predictions.labels.tolist() == one.predictions.labels.tolist()
        for theirs, ours in zip(one.trials, two.trials, strict=True):
            assert ours["lr"] == theirs["lr"]
            assert ours["held_out_top1"] == pytest.approx(theirs["held_out_top1"], abs=10.1), name
        assert len({trial["held_out_top1"] for trial in one.trials}) > 1  # there was a choice
        assert two.choice["head"] == one.choice["head"]
        assert one.head is not None and two.head is not None
        torch.testing.assert_close(two.head.weight, one.head.weight, rtol=1e-3, atol=1e-5)
        agree = two.predictions.predicted == one.predictions.predicted
        assert int(agree.sum()) >= 40, name


def test_a_result_is_drawn_where_it_stands(tmp_path: Path, ckpt: Path) -> None:
    """Whatever its folder is called: here after what a link leads to."""
    pytest.importorskip("matplotlib")
    write_sets(tmp_path / "colours", train=20, val=12)
    (tmp_path / "link").symlink_to("colours")
    step = open_checkpoint(ckpt).path
    options = ["--ckpt", step, "--data", tmp_path / "link", "--protocol", "logreg", "--pictures"]
    result = run([sys.executable, SCRIPT, *options, "--workers", "1"], log=tmp_path / "log")
    assert result.code == 0, result.text
    drawn = ckpt / "eval" / "colours-logreg" / "pictures"
    assert {"confusion.png", "map.png"} <= {each.name for each in drawn.iterdir()}
    assert str(drawn / "map.png") in result.text


def test_what_is_refused_is_said_by_one_rank(tmp_path: Path, ckpt: Path) -> None:
    sets = write_sets(tmp_path / "colours")
    options = ["--ckpt", ckpt, "--data", sets, "--knn", "101", "--workers", "1"]
    result = run([*deepspeed(2), SCRIPT, *options], log=tmp_path / "log")
    assert result.code == 2
    assert len(result.lines("--knn 101: the training set has 100 samples")) == 1, result.text
