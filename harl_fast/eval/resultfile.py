"""The kinds of values of a ``result.json``, see `results.Result` for their meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from harl_fast.kinds import Real, Text, Whole


class _Score(BaseModel):
    value: Real
    low: Real
    high: Real


class _Scores(BaseModel):
    top1: _Score
    top5: _Score
    mean_per_class: _Score


class _Data(BaseModel):
    name: Text
    classes: Annotated[list[Text], Field(min_length=1)]
    train_sha256: Text
    val_sha256: Text
    train_count: Whole
    val_count: Whole
    split: Text
    subset_sha256: Text = ""


class _Checkpoint(BaseModel):
    path: Text
    run: Text | None = None
    step: Whole | None = None
    weights_sha256: Text
    receipt: Text


class _Preprocessing(BaseModel):
    size_px: Annotated[Whole, Field(ge=1, le=1 << 16)]
    crop: Annotated[Real, Field(gt=0.0, le=1.0)]
    mean: list[Real]
    std: list[Annotated[Real, Field(gt=0.0)]]


class ResultFile(BaseModel):
    """What `results.read_result` needs of the file; other keys are for people to read."""

    protocol: Text
    headline: Literal["top1", "mean_per_class"]
    data: _Data
    checkpoint: _Checkpoint
    preprocessing: _Preprocessing
    settings: dict[Text, Whole | Real] = {}
    metrics: _Scores
    seed: Whole
    knn: dict[Text, _Scores]
    files: dict[Text, Text] = {}
    choice: dict[str, Any]
    trials: list[dict[str, Any]]
    created: Text
    versions: dict[str, Text]
