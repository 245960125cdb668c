"""A resumed run is the one that began: what differs is refused, or done by a rule that is told."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.config import Batches
from harl_fast.engine.machine import Machine
from harl_fast.engine.resume import seen_text
from harl_fast.engine.runfolder import mark, open_run_folder
from harl_fast.engine.start import Start, decide
from harl_fast.engine.trainer import Trainer
from harl_fast.errors import CheckpointError, ConfigError
from harl_fast.provenance import read_provenance
from harl_fast.runfiles import RunFolder
from tests.engine.runs import AS_BEGUN, FIRST, LAST, ask, rewrite, start, train
from tests.engine.support import STEPS, engine_config, tiny_file


def test_what_nobody_touched_goes_on(folder: Path, machine: Machine, tmp_path: Path) -> None:
    begun, _ = start(folder, machine, asked=ask())
    assert begun.step == 2 * STEPS and begun.notes == [] and begun.changes == {}
    again = ask(config=str(tiny_file(tmp_path)), overrides=AS_BEGUN)
    assert start(folder, machine, asked=again)[0].config == begun.config


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("optim.lr", 0.5, "optim.lr 2.0 -> 0.5"),
        ("target.tau_start", 0.5, "target.tau_start 0.9 -> 0.5"),
        ("epochs", 9, "epochs 2 -> 9"),
        ("data.views.0.size_px", 64, "data.views.0.size_px 32 -> 64"),
        ("data.views", [{"size_px": 32} for _ in range(3)], "data.views 2 entries -> 3 entries"),
        ("model.compile", True, "model.compile False -> True"),
    ],
)
def test_an_edited_configuration_is_refused_and_can_be_allowed(
    folder: Path,
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: Any,
    told: str,
) -> None:
    path = folder / "config.yaml"
    tree = node = yaml.safe_load(path.read_text())
    *parents, last = key.split(".")
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[last] = value
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError) as caught:
        start(folder, machine, asked=ask())
    for words in (told, LAST, f"--allow-change {key}", "--init-from"):
        assert words in str(caught.value)
    section = key.partition(".")[0]
    for allowed in (key, section):
        begun, _ = start(folder, machine, asked=ask(allow_change=[allowed]))
        assert begun.changes is not None and list(begun.changes) == [key]
        assert told in capsys.readouterr().err
    noted = read_provenance(folder / "provenance.json").starts[-1].model_dump()
    assert list(noted["changes"]) == [key]


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ("bf16.enabled=true", "precision 'fp32' -> 'bf16'"),
        ("gradient_clipping=1.0", "gradient_clipping 0.0 -> 1.0"),
        ("train_batch_size=8", "train_batch_size 16 -> 8"),
        ("communication_data_type=bf16", "communication_data_type 'fp32' -> 'bf16'"),
        ("train_micro_batch_size_per_gpu=4", "train_micro_batch_size_per_gpu 16 -> 4"),
    ],
)
def test_engine_settings_that_touch_the_result_are_refused(
    folder: Path, machine: Machine, engine: str, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        start(folder, machine, asked=ask(), engine=[engine])
    assert told in str(caught.value)
    key = told.partition(" ")[0]
    if key == "train_batch_size":  # the position would not fit
        with pytest.raises(ConfigError, match=f"{told}: epochs would have other steps"):
            start(folder, machine, asked=ask(allow_change=[key]), engine=[engine])
        return
    begun, _ = start(folder, machine, asked=ask(allow_change=[key]), engine=[engine])
    assert begun.changes is not None and list(begun.changes) == [key]


@pytest.mark.parametrize(
    "engine",
    [
        ["zero_optimization.stage=2"],
        ["zero_optimization.reduce_bucket_size=1000"],
        ["harl_fast.shard_one_rank=false"],
        ["fp16.hysteresis=7"],  # of a precision that is not used
    ],
)
def test_engine_settings_that_do_not_are_free(
    folder: Path, machine: Machine, engine: list[str]
) -> None:
    begun, _ = start(folder, machine, asked=ask(overrides=["log.every_steps=7"]), engine=engine)
    assert begun.changes == {}


def decided(folder: Path, *engine: str) -> Start:
    return decide(open_run_folder(folder, resume=True), engine_config(overrides=engine), ask())


def test_on_another_number_of_ranks_it_is_told_what_batchnorm_sees(folder: Path) -> None:
    def of_two_ranks(record: dict[str, Any]) -> None:
        record["ranks"] = 2
        record["engine"]["train_micro_batch_size_per_gpu"] = 8

    rewrite(folder, record=of_two_ranks)
    begun = decided(folder)
    assert begun.changes == {}
    assert begun.notes == ["BatchNorm sees 8 images -> 16 images at once after step 12"]
    assert decided(folder, "train_micro_batch_size_per_gpu=8").notes == []


@pytest.mark.parametrize(
    ("sync_bn", "seen"),
    [("none", "4 images"), ("all", "8 images"), ("heads", "4 images, in the heads 8,")],
)
def test_batchnorm_sees_a_micro_batch_of_one_rank_or_of_all(sync_bn: str, seen: str) -> None:
    assert seen_text(sync_bn, Batches(16, 4, 2, 2)) == seen
    assert seen_text(sync_bn, Batches(16, 4, 4, 1)) == "4 images"


def test_every_difference_is_listed_at_once(folder: Path, machine: Machine) -> None:
    asked = ask(overrides=["optim.lr=1", "loss.min_area=0.5"], allow_change=["optim.lr"])
    with pytest.raises(ConfigError) as caught:
        start(folder, machine, asked=asked, engine=["gradient_clipping=2.0"])
    assert "loss.min_area 0.001 -> 0.5; gradient_clipping 0.0 -> 2.0." in str(caught.value)
    assert "optim.lr " not in str(caught.value)


def test_a_key_that_is_none_cannot_be_allowed(folder: Path, machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"'optim.lrr' is no key; did you mean 'optim.lr'"):
        start(folder, machine, asked=ask(allow_change=["optim.lrr"]))


def test_the_record_gives_the_configuration_where_the_file_is_gone(
    folder: Path, machine: Machine
) -> None:
    (folder / "config.yaml").unlink()
    begun, _ = start(folder, machine, asked=ask(overrides=["log.every_steps=3"]))
    assert begun.config.log.every_steps == 3 and begun.config.optim.lr == 2.0
    assert (folder / "config.yaml").is_file()


def test_fewer_epochs_than_are_done_are_refused_even_if_allowed(
    folder: Path, machine: Machine
) -> None:
    with pytest.raises(ConfigError, match="12 steps are done, more than the 6 of 1 epochs"):
        start(folder, machine, asked=ask(overrides=["epochs=1"], allow_change=["epochs"]))


def test_another_runs_checkpoint_is_refused(folder: Path, machine: Machine, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train(other, machine, config=tmp_path)
    ids = [read_provenance(path / "provenance.json").run_id for path in (folder, other)]
    assert ids[0] != ids[1] and all(re.fullmatch("[0-9a-f]{16}", one) for one in ids)
    for path in (other / "checkpoints").iterdir():
        shutil.copy(path, folder / "checkpoints")
    with pytest.raises(CheckpointError) as caught:
        start(folder, machine, asked=ask())
    for words in (*ids, LAST, "--init-from"):
        assert words in str(caught.value)
    assert open_checkpoint(other, verify=True).record.run_id == ids[1]


def test_the_runs_id_stays_over_starts_and_comes_back_from_a_checkpoint(
    folder: Path, machine: Machine
) -> None:
    path = folder / "provenance.json"
    before = read_provenance(path).run_id
    start(folder, machine, asked=ask())
    assert read_provenance(path).run_id == before
    path.unlink()
    start(folder, machine, asked=ask())
    assert read_provenance(path).run_id == before


@pytest.mark.parametrize(
    "content",
    [None, "", "../../other/checkpoints/step-00000012", "step-12", "step-00000012.json", "\udcff"],
)
def test_without_a_valid_latest_the_newest_complete_one_is_taken_and_told(
    folder: Path, machine: Machine, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = folder / "checkpoints" / "latest"
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    begun, _ = start(folder, machine, asked=ask())
    assert begun.step == 2 * STEPS
    assert f"the newest complete checkpoint is {LAST}" in capsys.readouterr().err
    (folder / "checkpoints" / f"{LAST}.json").unlink()
    assert start(folder, machine, asked=ask())[0].step == STEPS
    (folder / "checkpoints" / f"{FIRST}.json").unlink()
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        start(folder, machine, asked=ask())


def test_a_run_killed_within_its_first_save_begins_again_and_says_so(
    folder: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_provenance(folder / "provenance.json").run_id
    for path in (folder / "checkpoints").iterdir():
        if path.name != f"{FIRST}.safetensors":  # the record was not written yet
            path.unlink()
    (folder / "run.json").write_text('{"state": "saving", "step": 6, "last_checkpoint": null}')
    begun, _ = start(folder, machine, asked=ask())
    assert begun.step == 0 and begun.weights is None and begun.run_id == before
    assert "the run begins again" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"optim.lr 2.0 -> 1.0"):
        start(folder, machine, asked=ask(overrides=["optim.lr=1.0"]))


def test_a_run_that_begins_again_has_the_engine_settings_and_data_of_its_first_start(
    folder: Path, machine: Machine
) -> None:
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    (folder / "run.json").unlink()
    engine, notes = folder / "engine.json", folder / "provenance.json"
    known, provenance = engine.read_text(), notes.read_text()
    metrics = folder / "metrics.jsonl"
    metrics.unlink()
    (folder / "finished").unlink(missing_ok=True)
    engine.write_text(known.replace('"gradient_clipping": 0.0', '"gradient_clipping": 1.0'))
    with pytest.raises(ConfigError, match=r"gradient_clipping 1.0 -> 0.0"):
        start(folder, machine, asked=ask())
    engine.write_text(known)
    notes.write_text(provenance.replace('"beton_sha256": "', '"beton_sha256": "0'))
    with pytest.raises(ConfigError, match="not the container that the run began with"):
        start(folder, machine, asked=ask())
    notes.write_text(provenance)
    engine.unlink()
    assert start(folder, machine, asked=ask())[0].step == 0
    assert engine.exists()


@pytest.mark.parametrize("left", ["", f"{FIRST}.safetensors"])
@pytest.mark.parametrize(
    "sign", ["run.json", "finished", "preempted", "metrics.jsonl", "provenance.json"]
)
def test_a_run_whose_checkpoints_were_lost_does_not_begin_again(
    folder: Path, sign: str, left: str
) -> None:
    for path in (folder / "checkpoints").iterdir():
        if path.name != left:
            path.unlink()
    if not left:
        (folder / "checkpoints").rmdir()
    if sign != "run.json":
        (folder / "run.json").unlink()
    if sign in ("finished", "preempted"):
        mark(folder / sign, step=12, reason="done")
    if sign == "metrics.jsonl":  # a record of the third epoch, with a checkpoint after each
        with (folder / sign).open("a") as stream:
            stream.write('{"step": 14, "epoch": 3}\n')
    if sign == "provenance.json":
        tree = json.loads((folder / sign).read_text())
        tree["starts"].append({"step": 6})
        (folder / sign).write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="but the run had one") as caught:
        decided(folder)
    assert f"{sign} " in str(caught.value) and "Bring the checkpoints back" in str(caught.value)


def test_what_a_rank_draws_by_itself_is_a_function_of_seed_and_rank(
    machine: Machine, tmp_path: Path
) -> None:
    states = []
    for number, seed in enumerate((0, 0, 1)):
        torch.seed()  # as torch does at the start of a process
        overrides = (*AS_BEGUN, f"seed={seed}")
        asked = ask(config=str(tiny_file(tmp_path)), overrides=overrides, resume=False)
        start(tmp_path / str(number), machine, asked=asked)
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_two_runs_leave_the_same_tensors_and_a_save_of_the_same_step_is_sealed_again(
    folder: Path, machine: Machine, tmp_path: Path
) -> None:
    train(tmp_path / "other", machine, config=tmp_path)
    records = [open_checkpoint(path, verify=True).record for path in (folder, tmp_path / "other")]
    assert records[0].tensors_sha256 == records[1].tensors_sha256
    (folder / "checkpoints" / "latest").write_text(f"{FIRST}\n")
    begun, parts = start(folder, machine, asked=ask())
    assert begun.step == STEPS
    going = Trainer(parts, RunFolder(folder), step=begun.step, run_id=begun.run_id)
    assert going.run() == 0
    again = open_checkpoint(folder, verify=True).record
    assert (again.step, again.tensors_sha256) == (2 * STEPS, records[0].tensors_sha256)
    metrics = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert metrics == [2, 4, 6, 8, 10, 12]


def test_more_epochs_extend_a_finished_run_and_the_schedules_rule_is_told(
    folder: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, state = start(folder, machine, asked=ask(overrides=["epochs=4"]))
    assert begun.changes == {"epochs": (2, 4)} and begun.step == 2 * STEPS
    assert not (folder / "finished").exists()
    told = capsys.readouterr().err
    assert "epochs 2 -> 4: from step 12 on" in told and "(lr 0 -> " in told
    longer = Trainer(state, RunFolder(folder), step=begun.step, run_id=begun.run_id)
    assert longer.run() == 0
    assert open_checkpoint(folder, verify=True).record.step == 4 * STEPS
    rates = [json.loads(line)["lr"] for line in (folder / "metrics.jsonl").open()][STEPS:]
    assert rates == [state.schedule.at(step - 1).lr for step in range(14, 25, 2)]
    assert state.schedule.total == 4 * STEPS and rates[0] > rates[-1] > 0.0
    # At its new end it can be extended again, but not be cut unless that is allowed.
    with pytest.raises(ConfigError, match="epochs 4 -> 3"):
        start(folder, machine, asked=ask(overrides=["epochs=3"]))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.predictor_hidden=24", "model.predictor_hidden"),
        ("model.projector_layers=3", "model.projector_layers 2 -> 3"),
        ("loss.level=3", "loss.level 4 -> 3"),
    ],
)
def test_what_no_checkpoint_fits_is_not_offered_to_be_allowed(
    folder: Path, machine: Machine, override: str, told: str
) -> None:
    for allowed in ([], [override.partition("=")[0]], ["model", "loss"]):
        with pytest.raises(ConfigError, match=r"of another network: .*No --allow-change") as no:
            start(folder, machine, asked=ask(overrides=[override], allow_change=allowed))
        assert told in str(no.value) and LAST in str(no.value)
