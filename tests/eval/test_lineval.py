"""`launch/lineval.py`: protocols, result folders, kept features, subsets and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from harl_fast.data.loader import EvalLoader
from harl_fast.engine.networks import load_pretrained
from harl_fast.errors import ConfigError, DataError, HarlError
from harl_fast.eval.features import extract
from harl_fast.eval.metrics import predictions, scores
from harl_fast.eval.options import ONLY
from harl_fast.eval.results import read_result
from harl_fast.lock import lock_beside, locked
from harl_fast.tools import hub
from harl_fast.tools.export import export_encoder
from launch import lineval
from tests.eval.test_protocol import folder, run

__all__ = ["folder", "run"]  # fixtures


def judge(run: Path, folder: Path, *options: str) -> int:
    length = [] if "--protocol" in options else ["--epochs", "3"]
    arguments = ["--ckpt", str(run), "--data", str(folder), "--workers", "1", *length]
    return lineval.main([*arguments, *options])


@pytest.mark.parametrize("protocol", ["cached", "logreg"])
def test_a_result_folder_holds_all_that_the_summary_says(
    folder: Path, run: Path, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(run, folder, "--protocol", protocol, "--random", "--knn", "5,20") == 0
    printed = capsys.readouterr()
    assert "preprocessing: size_px 16, crop 1.0" in printed.out
    assert "tensors" in printed.err and "step 1" in printed.err  # the receipt
    summary = json.loads((run / "lineval.json").read_text())
    result = read_result(run / "eval" / f"{folder.name}-{protocol}")
    baseline = read_result(run / "eval" / f"{folder.name}-{protocol}-random")
    assert result.checkpoint["weights_sha256"] != baseline.checkpoint["weights_sha256"]
    assert result.checkpoint["step"] == 1
    assert result.metrics["top1"].value == pytest.approx(
        summary["pretrained"]["linear"]["metrics"]["top1"]
    )
    assert result.knn["20"]["top1"].value == pytest.approx(summary["pretrained"]["knn"]["top1"])
    assert list(result.knn) == ["5", "20"]
    for name, each in (("pretrained", result), ("random", baseline)):
        for method, shown in (("linear", each.metrics), ("k-NN", each.knn["20"])):
            cells = r"\s+".join(re.escape(str(score)) for score in shown.values())
            assert re.search(rf"^{name}\s+{method}\s+{cells}$", printed.out, re.MULTILINE)
    assert len(result.trials) == {"cached": 24, "logreg": 45}[protocol]
    assert result.names[3] == "sample3.jpg" and result.data["split"] == "own split"
    assert result.preprocessing["size_px"] == 16 and result.headline == "top1"


@pytest.mark.parametrize("protocol", ["cached", "logreg"])
def test_the_head_file_alone_gives_the_predictions(folder: Path, run: Path, protocol: str) -> None:
    assert judge(run, folder, "--protocol", protocol) == 0
    result = read_result(run / "eval" / f"{folder.name}-{protocol}")
    loaded = load_pretrained(run)

    def prepare(views: torch.Tensor) -> torch.Tensor:
        mean, std = torch.tensor(loaded.mean), torch.tensor(loaded.std)
        return ((views / 255.0 - mean) / std).permute(0, 3, 1, 2)

    loader = EvalLoader(folder / "val.beton", size_px=16, centre=1.0, workers=1)
    data = extract(loaded.backbone, loader, prepare=prepare, device=torch.device("cpu"))
    assert result.head is not None
    scored = result.head(data.features)
    # Rounding of standardised and plain features may turn a sample at the border.
    first, second = scored.topk(2).values.unbind(1)
    clear = first - second > 1e-4 * scored.abs().amax(1)
    assert torch.equal(scored.argmax(1)[clear], result.predictions.predicted[clear])
    assert clear.double().mean() >= 0.95


def test_an_export_states_the_inputs_on_which_its_head_says_what_the_result_says(
    folder: Path, run: Path, tmp_path: Path
) -> None:
    seen = ["--size-px", "24", "--mean", "0.1,0,0.2", "--std", "1,0.9,1", "--crop", "0.7"]
    assert judge(run, folder, *seen) == 0
    result = read_result(place := run / "eval" / f"{folder.name}-cached")
    export_encoder(run, out := tmp_path / "out", head=place / "result.json")
    model = hub.load(out, endpoints=True)
    stated = json.loads((out / "config.json").read_text())["pretrained_cfg"]
    mean, std = (torch.tensor(stated[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert (list(model.mean), list(model.std)) == (stated["mean"], stated["std"])
    size_px, crop = stated["input_size"][1], stated["crop_pct"]
    loader = EvalLoader(folder / "val.beton", size_px=size_px, centre=crop, workers=1)
    with torch.inference_mode():
        rows = [
            model((batch.views[0].permute(0, 3, 1, 2) / 255 - mean) / std)["logits_sup"]
            for batch in loader
        ]
    found = predictions(torch.cat(rows), result.predictions.labels)
    torch.testing.assert_close(found.probability, result.predictions.probability, rtol=0, atol=1e-4)
    top1 = scores(found, classes=3)["top1"]
    assert top1.value == pytest.approx(result.metrics["top1"].value)


def test_a_second_evaluation_reads_no_image(
    folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(run, folder) == 0
    first = (run / "eval" / f"{folder.name}-cached" / "predictions.npz").read_bytes()
    assert len(list((run / "features").glob("*.safetensors"))) == 2

    def no_image(*_: object) -> None:
        raise AssertionError("an image was read")

    with monkeypatch.context() as patched:
        patched.setattr(EvalLoader, "__iter__", no_image)
        assert judge(run, folder) == 0
        assert judge(run, folder, "--protocol", "logreg") == 0
        assert judge(run, folder, "--subset", "3-per-class") == 0
        for other in (["--no-cache"], ["--size-px", "24"], ["--mean", "0,0,0"], ["--crop", "0.5"]):
            with pytest.raises(AssertionError, match="an image was read"):
                judge(run, folder, *other)
    assert (run / "eval" / f"{folder.name}-cached-1" / "predictions.npz").read_bytes() == first
    # One flipped bit of a feature.
    for file in (run / "features").glob("*train*"):
        content = bytearray(file.read_bytes())
        content[-1000] ^= 1
        file.write_bytes(content)
    capsys.readouterr()
    assert judge(run, folder) == 0
    assert "is damaged (its checksum differs)" in capsys.readouterr().err
    assert (run / "eval" / f"{folder.name}-cached" / "predictions.npz").read_bytes() == first


def test_results_of_other_settings_are_kept(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = run / "eval" / f"{folder.name}-cached"
    others = [{"epochs": 2, "knn_temperature": t} for t in (0.07, 50.0)]
    for made in (*others, others[1]):
        options = (f"--{name.replace('_', '-')}={value}" for name, value in made.items())
        assert judge(run, folder, "--seed", "7", *options) == 0
        assert read_result(place).settings == made
        noted = f"{place} was of other settings; kept as" in capsys.readouterr().err
    assert not noted  # the last were the same again
    kept = [read_result(each) for each in place.parent.glob(f"{place.name}-[0-9]*")]
    assert [each.settings for each in kept if each.seed == 7] == others[:1]
    assert judge(run, folder, "--protocol", "logreg") == 0
    logreg = read_result(run / "eval" / f"{folder.name}-logreg")
    assert logreg.settings == {"knn_temperature": 0.07}


def test_a_subset_trains_on_its_samples_alone(folder: Path, run: Path) -> None:
    assert judge(run, folder, "--subset", "4-per-class", "--no-cache") == 0
    place = run / "eval" / f"{folder.name}-cached"
    kept = (place / "subset.txt").read_text().split()
    assert read_result(place).data["train_count"] == len(kept) == 12
    labels = np.array([int(name.removeprefix("sample").removesuffix(".jpg")) for name in kept])
    assert len(set(labels)) == 12
    assert judge(run, folder, "--subset", str(place / "subset.txt"), "--no-cache") == 0
    assert json.loads((run / "lineval.json").read_text())["pretrained"]["train_count"] == 12


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--knn", "10,91"], ConfigError, "--knn 91: the training set has 90 samples"),
        (["--subset", "3-per-class", "--knn", "10"], ConfigError, "--knn 10: .* has 9 samples"),
        (["--subset", "1-per-class"], DataError, "none of the 3 classes has two training"),
        (["--subset", "no.txt"], DataError, "'no.txt' is no file"),
        (["--mean", "0.5"], ConfigError, "mean"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_image(
    folder: Path,
    run: Path,
    options: list[str],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_image(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(EvalLoader, "__iter__", no_image)
    with pytest.raises(error, match=message) as caught:
        judge(run, folder, *options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("protocol", "options", "owners"),
    [
        ("logreg", ["--epochs", "100"], "cached and imagenet"),
        ("imagenet", ["--no-cache"], "cached and logreg"),
        ("imagenet", ["--knn", "5"], "cached and logreg"),
        ("imagenet", ["--knn-temperature", "0.1"], "cached and logreg"),
        ("imagenet", ["--out", "x.json"], "cached and logreg"),
        ("cached", ["--preset", "byol"], "imagenet"),
        ("logreg", ["--deepspeed_config", "ds_configs/cpu.json"], "imagenet"),
    ],
)
def test_an_option_of_another_protocol_is_refused(
    folder: Path, run: Path, protocol: str, options: list[str], owners: str
) -> None:
    option = options[0].replace("--no-", "--")
    with pytest.raises(ConfigError, match=f"^{option} belongs to --protocol {owners}, {protocol} "):
        judge(run, folder, "--protocol", protocol, *options)


def test_the_table_names_options_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lineval.parse(["--help"])
    text = capsys.readouterr().out
    assert all(f"{option} " in text or f"{option}," in text for option in ONLY)


def test_default_neighbours_are_those_that_there_are(folder: Path, run: Path) -> None:
    assert judge(run, folder) == 0
    assert list(read_result(run / "eval" / f"{folder.name}-cached").knn) == ["10", "20", "50"]


def test_a_result_of_few_training_samples_has_neighbours_too(folder: Path, run: Path) -> None:
    assert judge(run, folder, "--subset", "3-per-class") == 0
    assert list(read_result(run / "eval" / f"{folder.name}-cached").knn) == ["9"]


@pytest.mark.parametrize("place", ["eval", "lineval.json"])
def test_two_at_once_in_one_result_folder_are_refused(folder: Path, run: Path, place: str) -> None:
    output = run / place
    before = output.stat().st_mtime_ns if output.exists() else 0
    refused = pytest.raises(HarlError, match=rf"{place} is in use by process")
    with locked(lock_beside(output), output=output), refused:
        judge(run, folder)
    assert (output.stat().st_mtime_ns if output.exists() else 0) == before
