"""What is read out of features of the demo set: hand-made features, and oracles beside them."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from harl_fast.data.container.manifest import find_container
from harl_fast.data.container.names import read_names
from harl_fast.data.reader import OpenContainer
from harl_fast.engine.networks import load_pretrained
from harl_fast.errors import DataError
from harl_fast.eval.features import FeatureSet
from harl_fast.eval.knn import TEMPERATURE
from harl_fast.eval.metrics import Score
from harl_fast.tools import charts, demo_pictures, demo_report, demo_scores
from harl_fast.tools.demo_scores import (
    OBJECT,
    SCENE,
    UNSEEN,
    Accuracy,
    SplitFeatures,
    chance,
    judge,
)
from preprocess import beton
from tests.engine.saved import checkpoint
from tests.engine.tuning import write_sets
from tests.sheets import texts_drawn

KINDS = 4


def features(each: int, *, kind: str, seed: int = 0) -> SplitFeatures:
    """Return features of ``each`` samples of all pairs of four objects and four scenes.

    kind: which one-hot code they have, beside some noise: "object", "scene", "pair" or "none".
    """
    pairs = torch.tensor([*itertools.product(range(KINDS), range(KINDS))] * each)
    objects, scenes = pairs.T
    codes = {"object": objects, "scene": scenes, "pair": KINDS * objects + scenes}
    noise = torch.randn(len(pairs), KINDS**2, generator=torch.Generator().manual_seed(seed))
    features = 0.1 * noise
    if kind in codes:
        features += torch.eye(KINDS**2)[codes[kind]]
    return SplitFeatures(FeatureSet(features, objects), FeatureSet(features, scenes))


@pytest.mark.parametrize(
    ("kind", "known"),
    [("object", (OBJECT, UNSEEN)), ("scene", (SCENE,)), ("pair", (OBJECT, SCENE)), ("none", ())],
)
def test_each_accuracy_is_of_what_the_features_hold(kind: str, known: tuple[str, ...]) -> None:
    """What is known by pairs alone says nothing in a scene that heads and bank never saw."""
    found = judge(features(12, kind=kind, seed=1), features(8, kind=kind, seed=2))
    assert [*found] == [OBJECT, SCENE, UNSEEN]
    for what, accuracy in found.items():
        for score in (accuracy.linear, accuracy.knn):
            assert score.low <= score.value <= score.high
            assert score.value > 95 if what in known else score.value < 50, (what, score)
    assert chance(features(1, kind="none")) == {OBJECT: 25.0, SCENE: 25.0, UNSEEN: 25.0}


def by_hand(train: SplitFeatures, val: SplitFeatures) -> float:
    """Return k-NN's accuracy on objects in unseen scenes, sample by sample."""
    right = 0
    bank, queries = (each.objects.features.double().numpy() for each in (train, val))
    for row, query in enumerate(queries):
        pair = int(val.scenes.labels[row]) // 2
        allowed = train.scenes.labels.numpy() // 2 != pair
        rows, labels = bank[allowed], train.objects.labels.numpy()[allowed]
        cosine = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        near = np.argsort(-cosine)[:20]
        votes = np.zeros(KINDS)
        np.add.at(votes, labels[near], np.exp(cosine[near] / TEMPERATURE))
        right += int(votes.argmax() == int(val.objects.labels[row]))
    return 100.0 * right / len(queries)


def test_unseen_scenes_are_kept_from_the_bank() -> None:
    generator = torch.Generator().manual_seed(3)
    plain = [features(12, kind="object", seed=1), features(8, kind="object", seed=2)]
    train, val = (
        SplitFeatures(
            *(FeatureSet(each.features + shift, each.labels) for each in (v.objects, v.scenes))
        )
        for v in plain
        for shift in [0.35 * torch.randn(v.objects.features.shape, generator=generator)]
    )
    found = judge(train, val)[UNSEEN].knn.value
    assert 40 < found < 95
    assert found == pytest.approx(by_hand(train, val))


def test_heads_see_neither_a_judged_scene_nor_a_sample_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    plain = demo_scores.logistic_probe

    def probe(train: FeatureSet, test: FeatureSet, **more: int) -> object:
        seen.append((train.features[:, 0].long(), test.features[:, 0].long()))
        return plain(train, test, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(demo_scores, "logistic_probe", probe)
    train, val = features(6, kind="pair", seed=1), features(4, kind="pair", seed=2)
    for part in (train, val):  # the first feature says which sample it is
        part.objects.features[:, 0] = torch.arange(len(part.objects.labels))
    judge(train, val)
    folds = seen[2:]
    assert len(folds) == 2
    for bank, judged in folds:
        assert not {*train.scenes.labels[bank].tolist()} & {*val.scenes.labels[judged].tolist()}
        assert len(bank) == len(train.objects.labels) // 2
    judged = torch.cat([part for _, part in folds])
    assert sorted(judged.tolist()) == [*range(len(val.objects.labels))]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """Return the list of the figures that become files from now on."""
    found: list[Figure] = []
    plain = charts.png
    monkeypatch.setattr(charts, "png", lambda figure: found.append(figure) or plain(figure))
    yield found


def figures() -> dict[str, dict[str, Accuracy]]:
    """Return made-up accuracies, all unlike each other."""
    number = itertools.count(20)
    return {
        name: {
            what: Accuracy(*(Score(v, v - 2.0, v + 2.0) for v in (next(number), next(number))))
            for what in (OBJECT, SCENE, UNSEEN)
        }
        for name in ("random", "without masks", "with masks")
    }


def test_table_and_bars_show_every_figure(drawn: list[Figure]) -> None:
    found, guessed = figures(), {OBJECT: 10.0, SCENE: 12.5, UNSEEN: 10.0}
    lines = demo_report.table(found, chance=guessed).splitlines()
    for line, (name, accuracies) in zip(lines[2:5], found.items(), strict=True):
        values = [v for a in accuracies.values() for v in (a.linear.value, a.knn.value)]
        assert line.split() == [*name.split(), *(f"{value:.1f}" for value in values)]
    assert lines[5].split() == ["chance", "10.0", "12.5", "10.0"]
    assert len({len(line) for line in lines[1:6]}) == 1  # columns end in line
    assert "up to 2.0 points" in lines[6]

    assert demo_pictures.bars(found, chance=guessed, title="t").startswith(b"\x89PNG")
    (figure,) = drawn
    for axes, what in zip(figure.axes, (OBJECT, SCENE, UNSEEN), strict=True):
        heights = [bar.get_height() for bar in axes.patches]
        expected = [v for a in found.values() for v in (a[what].linear.value, a[what].knn.value)]
        assert heights == expected
        assert [text.get_text() for text in axes.texts] == [f"{v:.0f}" for v in expected]
        names = [text.get_text().replace("\n", " ") for text in axes.get_xticklabels()]
        assert names == [*found]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    options = ["--demo-images", "60", "--demo-size", "32", "--mask-size", "32"]
    assert beton.main(["--out", str(folder), "--workers", "2", *options]) == 0
    return folder


def test_neighbours_are_framed_by_what_they_share(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features that are the object's code, or the scene's: all neighbours share it."""
    parts = {}
    for split in ("train", "val"):
        path = find_container(data, split)
        scenes = demo_scores.scenes_of(read_names(path))
        numbers = torch.tensor([sorted({*scenes}).index(scene) for scene in scenes])
        parts[split] = torch.from_numpy(OpenContainer(path).labels).long(), numbers
    code, found = torch.eye(10), {}
    for place, name in enumerate(("by object", "by scene")):
        found[name] = tuple(
            SplitFeatures(FeatureSet(code[labels[place]], labels[0]), FeatureSet(code, labels[1]))
            for labels in parts.values()
        )
    said = texts_drawn(monkeypatch)
    content = demo_pictures.neighbours(found, data, title="a title")  # type: ignore[arg-type]
    captions = [text for text in said if "nearest, the same" in text]
    assert len(captions) == demo_pictures.QUERIES
    kinds = [caption.split(";")[0].split(" in ") for caption in captions]
    assert len({kind for kind, _ in kinds}) == len({scene for _, scene in kinds}) == len(kinds)
    assert all("by object 4" in caption for caption in captions)
    sheet = np.array(Image.open(io.BytesIO(content)))
    counts = {key: int((sheet == colour).all(2).sum()) for key, (colour, _) in
              demo_pictures._FRAMES.items()}  # fmt: skip
    # A frame of 5 px around 96 px has 2,020; half of all neighbours are by each code.
    frame, mark, total = 106**2 - 96**2, 12 * 24, demo_pictures.QUERIES * 4
    shared = {key: (count - mark) / frame for key, count in counts.items()}
    assert shared[True, True] + shared[True, False] >= total - 0.5
    assert shared[True, True] + shared[False, True] >= total - 0.5
    assert sum(shared.values()) == pytest.approx(2 * total, abs=0.5)


def test_the_program_judges_two_runs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {name: tmp_path / name for name in ("plain", "masked")}
    for folder in runs.values():
        checkpoint(folder, arch="resnet18", width=0.25)
        (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 1.5, "img_s": 20.0}\n')
    places = ["--data", str(data), "--without", str(runs["plain"]), "--with", str(runs["masked"])]
    assert demo_report.main([*places, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "45 training and 15 validation images of 10 objects before 10 scenes" in said
    assert "backgrounds distract by design" in said and "with masks: 3 steps" in said
    for name in ("accuracy.png", "neighbours.png"):
        assert Image.open(tmp_path / "out" / name).size[0] > 600
    found = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert [*found["top1"]] == ["random", "without masks", "with masks"]
    # One network under two names: the same figures; a random one of its own.
    assert found["top1"]["without masks"] == found["top1"]["with masks"]
    weights = found["provenance"]["weights"]
    assert weights["with masks"] == weights["without masks"] != weights["random"]


@pytest.mark.parametrize(
    ("logged", "told"),
    [
        (None, "{} steps, nothing logged"),
        ('{"loss": 1}\n{"step": "x", "loss": "y", "img_s": []}\n[1]\n', "{} steps, nothing logged"),
        (
            '{"step": 1, "loss": 2.5, "img_s": 30.0}\n{"step": 10000, "loss": 0.1, "img_s": 5.0}\n',
            "{} steps at 30 images/s, loss 2.5000",
        ),
    ],
)
def test_what_is_told_of_a_run_is_of_the_checkpoint_that_is_judged(
    tmp_path: Path, logged: str | None, told: str
) -> None:
    """Logs can be gone, be damaged, or go on after the last checkpoint."""
    checkpoint(tmp_path, arch="resnet18", width=0.25)
    step = 3
    if logged is not None:
        (tmp_path / "metrics.jsonl").write_text(logged)
    for ckpt in (tmp_path, tmp_path / "checkpoints", *tmp_path.glob("checkpoints/*.safetensors")):
        assert demo_report._trained(load_pretrained(ckpt), ckpt) == told.format(step)


def test_images_that_only_have_the_names_of_a_demo_set_are_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run", arch="resnet18", width=0.25)
    sets = write_sets(tmp_path / "sets", train=8, val=4)
    encoder = load_pretrained(tmp_path / "run")
    with pytest.raises(DataError, match=r"sets holds '.*', no demo set"):
        demo_scores.extract_splits(encoder, sets, label="x")
