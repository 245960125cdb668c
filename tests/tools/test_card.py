"""The model card of an exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harl_fast.engine.checkpoint.format import Record, write_checkpoint
from harl_fast.engine.networks import load_pretrained
from harl_fast.finetuning import FinetuneConfig
from harl_fast.tools.card import model_card
from tests.engine.saved import checkpoint
from tests.tools.results import make_result

SMALL: dict[str, Any] = {"arch": "resnet18", "width": 0.25, "stem": "small"}
BEFORE = {
    "path": "/runs/warm/checkpoints/step-00000003.safetensors",
    "run": "/runs/warm",
    "step": 3,
}


def card_of(run: Path) -> str:
    return model_card(load_pretrained(run), classes=(), timm=False)


def tuned(run: Path, *, before: dict[str, Any] = BEFORE, **finetune: Any) -> Path:
    """Write the checkpoint of a fine-tuning, whose head sits on the projector."""
    written, tensors = checkpoint(run.with_name("pretrained"), **SMALL)
    record = written.record.model_dump(include={"step", "epoch", "epoch_step", "engine"})
    data = {"classes": ["cat", "dog"], "count": 1200, "train_count": 1000, "pretrained": before}
    section = FinetuneConfig(ft_proj_selector=1, **finetune)
    write_checkpoint(
        run / "checkpoints",
        tensors={f"online.backbone.{name}": tensor for name, tensor in tensors.items()},
        record={**record, "config": written.record.config, "finetune": section, "data": data},
    )
    return run


def test_a_pretraining_is_said_to_be_without_labels(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run", **SMALL)
    card = card_of(tmp_path / "run")
    assert "# resnet18, pretrained by HARL without labels\n" in card
    assert "tags: [image-feature-extraction, self-supervised, harl]\n" in card
    assert "It began" not in card


def test_weights_that_a_pretraining_began_with_are_named(tmp_path: Path) -> None:
    """They may have seen labels. Starts of a run that was taken away do not count."""
    written, _ = checkpoint(tmp_path / "run", **SMALL)
    assert isinstance(written.record, Record)
    sources = ["old.pth", "weights/resnet18.pth", None]
    starts = [{"step": 3 * (each is None), "init_from": each} for each in sources]
    known = {"run_id": written.record.run_id, "starts": starts}
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(known))
    card = card_of(tmp_path / "run")
    assert "tags: [image-feature-extraction, harl]\n" in card
    assert "\n\nIt began with the weights of resnet18.pth.\n\n" in card
    (tmp_path / "run" / "provenance.json").write_text(json.dumps({**known, "run_id": "another"}))
    assert "It began" not in card_of(tmp_path / "run")


@pytest.mark.parametrize(
    ("values", "title", "tags", "told"),
    [
        (
            {},
            ", fine-tuned with labels",
            ", fine-tuned",
            "with the weights of warm step 3, and was",
        ),
        ({"random": True}, ", trained with labels", ", supervised", "at random, and was trained"),
        (
            {"before": {"path": "/x/resnet18.pth", "run": "/x/resnet18.pth", "step": None}},
            ", fine-tuned with labels",
            ", fine-tuned",
            "with the weights of resnet18.pth, and was trained with the labels of 1,000 of 1,200 "
            "images in 2 classes.",
        ),
        ({"fine_tune_after_block": 4}, "", "", "with the weights of warm step 3, and only a class"),
    ],
)
def test_a_fine_tuning_is_said_to_have_seen_labels(
    tmp_path: Path, values: dict[str, Any], title: str, tags: str, told: str
) -> None:
    card = card_of(tuned(tmp_path / "run", **values))
    assert f"# resnet18{title}\n" in card and f"tags: [image-feature-extraction{tags}]\n" in card
    assert f"\n\nIt began {told}" in card
    assert "without labels" not in card and "self-supervised" not in card


def test_results_with_fewer_labels_are_told_apart(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint(run, **SMALL)
    sha256 = load_pretrained(run).weights_sha256
    judged = {"path": "x", "run": "x", "step": 3, "weights_sha256": sha256, "receipt": "62/62"}
    for data in ({"train_count": 12, "subset_sha256": "f" * 64}, {}):
        make_result(run / "eval" / "pets-cached", accuracy=0.5, data=data, checkpoint=judged)
    rows = [line for line in card_of(run).splitlines() if line.startswith("| pets | cached |")]
    assert [row.split(" | ")[2] for row in rows] == ["1,200", "12 (a subset)"]
