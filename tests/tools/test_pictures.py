"""Pictures of a result: what is counted, what text is drawn, and which files others can read."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from harl_fast.errors import DataError, HarlError
from harl_fast.eval.results import Result, read_result
from harl_fast.lock import FOLDER_LOCK, locked
from harl_fast.tools import charts, embeddings, pictures
from harl_fast.tools.embeddings import Embeddings, stratified
from tests.betons import plain_item, write_beton
from tests.tools.results import make_result

ODD = ("cat", "$x_", "a\nb", "<b>", "a class with a name that is far too long for any chart", "owl")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """Return the list of the figures that become files from now on."""
    found: list[Figure] = []
    plain = charts.png

    def png(figure: Figure) -> bytes:
        found.append(figure)
        return plain(figure)

    monkeypatch.setattr(charts, "png", png)
    yield found


def ticks(figure: Figure) -> list[str]:
    """Return the names along the vertical axis of a figure's first panel."""
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def result_of(tmp_path: Path, **values: Any) -> Result:
    return make_result(tmp_path / "run" / "eval" / "pets-cached", **{"accuracy": 0.6, **values})


def test_a_small_confusion_matrix_has_the_shares_of_true_classes(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    result = result_of(tmp_path, classes=ODD)
    assert pictures.confusion(result).startswith(b"\x89PNG")
    (image,) = drawn[0].axes[0].get_images()
    shares = np.asarray(image.get_array())
    hits = result.predictions.predicted == result.predictions.labels
    for label in range(len(ODD)):
        chosen = result.predictions.labels == label
        assert shares[label, label] == pytest.approx(100 * float(hits[chosen].double().mean()))
    assert shares.sum(1) == pytest.approx(100)
    assert ticks(drawn[0])[1:3] == ["$x_ (100)", "a\\nb (100)"]
    assert "…" in ticks(drawn[0])[4] and "true class" in drawn[0].axes[0].get_ylabel()


def test_of_many_classes_the_most_confused_pairs_stand(tmp_path: Path, drawn: list[Figure]) -> None:
    classes = [f"class{number:03d}" for number in range(60)]
    pictures.confusion(result_of(tmp_path, classes=classes, accuracy=[0.9] * 59 + [0.1]))
    # The last class is mostly taken for the first one, see `make_result`.
    assert ticks(drawn[0])[0] == "class059 → class000"
    assert len(ticks(drawn[0])) <= pictures.PAIRS


def test_a_prediction_of_no_class_is_wrong_and_draws(tmp_path: Path, drawn: list[Figure]) -> None:
    result = result_of(tmp_path)
    found = dataclasses.replace(
        result.predictions, predicted=torch.full_like(result.predictions.predicted, -1)
    )
    result = dataclasses.replace(result, predictions=found)
    pictures.confusion(result)
    pictures.per_class(result)
    assert np.asarray(drawn[0].axes[0].get_images()[0].get_array()).max() == 0
    assert {bar.get_width() for bar in drawn[1].axes[0].patches} == {0}


@pytest.mark.parametrize(("count", "panels"), [(6, [6]), (70, [35, 35]), (150, [50, 50])])
def test_bars_of_classes_go_from_the_lowest_to_the_highest(
    tmp_path: Path, drawn: list[Figure], count: int, panels: list[int]
) -> None:
    classes = [f"c{number}" for number in range(count)]
    pictures.per_class(result_of(tmp_path, classes=classes, count=1500))
    widths = [[bar.get_width() for bar in axes.patches] for axes in drawn[0].axes]
    assert [len(each) for each in widths] == panels
    flat = [width for each in widths for width in each]
    assert flat == sorted(flat)


def embedded(count: int = 120, classes: int = 4) -> Embeddings:
    """Return clusters, one per class, the last class having one sample."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % (classes - 1)
    labels[7] = classes - 1
    return Embeddings(
        ids=np.arange(count),
        names=[f"class{label}/{index}\t.jpg" for index, label in enumerate(labels)],
        features=(random.normal(size=(count, 16)) + 8 * np.eye(16)[labels]).astype(np.float32),
        labels=labels,
        predicted=np.where(np.arange(count) % 5 == 0, -1, labels),
        classes=[f"class{number}" for number in range(classes)],
    )


def test_the_map_keeps_classes_together_and_names_them(
    drawn: list[Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    charts.check_extra()
    pictures.feature_map(embedded(), title="t")
    assert "map: placing 120 images" in capsys.readouterr().err
    axes = drawn[0].axes[0]
    groups = [np.asarray(each.get_offsets()) for each in axes.collections]
    assert [len(group) for group in groups] == [40, 39, 40, 1]
    middles = np.array([np.median(group, axis=0) for group in groups[:3]])
    for number, group in enumerate(groups[:3]):
        nearest = np.linalg.norm(group[:, None] - middles, axis=2).argmin(1)
        assert (nearest == number).mean() > 0.9
    assert {text.get_text() for text in axes.texts} >= {"class0", "class1", "class2"}
    assert "t-SNE" in axes.get_title() or "UMAP" in axes.get_title()
    with pytest.raises(HarlError, match=r"a map of 9 .* 10 are the least"):
        pictures.feature_map(embedded(count=9), title="t")


def test_of_features_of_any_scale_a_map_is_drawn(drawn: list[Figure]) -> None:
    """t-SNE took features of 1e-30 for equal ones and died; those of 1e20 lay on one point."""
    charts.check_extra()
    for scale in (1e-30, 1e20):
        given = embedded(count=20)
        scaled = (given.features * scale).astype(np.float32)
        pictures.feature_map(dataclasses.replace(given, features=scaled), title="t")
        collections = drawn[-1].axes[0].collections
        places = np.concatenate([np.asarray(each.get_offsets()) for each in collections])
        assert np.isfinite(places).all() and np.ptp(places, axis=0).min() > 1.0


def test_features_that_make_no_map_are_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = result_of(tmp_path)
    features = np.ones((len(result.ids), 16), np.float32)
    monkeypatch.setattr("harl_fast.tools.features.check_containers", lambda *_: None)
    monkeypatch.setattr("harl_fast.tools.features.validation_features", lambda *_: features)
    with pytest.raises(HarlError, match=r"validation images are equal, .* leave --data out"):
        pictures.draw(tmp_path / "run" / "eval" / "pets-cached", tmp_path / "out", data=tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_map_is_umaps_where_that_is_installed(
    drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Doubling:
        def __init__(self, *, random_state: int) -> None: ...

        def fit_transform(self, rows: np.ndarray) -> np.ndarray:
            return 2.0 * rows[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Doubling))
    given = embedded()
    pictures.feature_map(given, title="t")
    axes = drawn[0].axes[0]
    assert "UMAP (of 16 principal components)" in axes.get_title()
    placed = np.concatenate([np.asarray(each.get_offsets()) for each in axes.collections])
    centred = given.features - given.features.mean(0)
    centred /= np.abs(centred).max()
    widths = np.linalg.svd(centred, compute_uv=False)[:2]
    assert np.linalg.norm(placed, axis=0) == pytest.approx(2.0 * widths, rel=1e-3)


def test_a_stratified_part_has_each_class_and_their_shares() -> None:
    labels = np.repeat([0, 1, 2], (900, 90, 2))
    chosen = stratified(labels, 100, seed=0)
    assert len(set(chosen.tolist())) == 100 and chosen.tolist() == sorted(chosen.tolist())
    counts = np.bincount(labels[chosen])
    assert abs(counts[0] - 91) <= 1 and abs(counts[1] - 9) <= 1 and counts[2] >= 1
    assert (stratified(labels, 5000, seed=0) == np.arange(992)).all()
    assert set(labels[stratified(labels, 3, seed=1)].tolist()) == {0, 1, 2}
    assert (stratified(labels, 100, seed=0) != stratified(labels, 100, seed=1)).any()


def test_the_projector_reads_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PROJECTED", 50)
    write_beton(tmp_path / "val.beton", plain_item, count=120)
    out, given = tmp_path / "projector", embedded()
    shown = embeddings.write_projector(out, given, data=tmp_path)
    config = text_format.Parse((out / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (entry,) = config.embeddings
    points = np.loadtxt(out / entry.tensor_path, delimiter="\t")
    assert points.shape == (50, 16) and np.allclose(points, shown.features, rtol=1e-4)
    head, *rows = (out / entry.metadata_path).read_text().splitlines()
    assert head.split("\t") == ["name", "class", "predicted", "right"]
    cells = [row.split("\t") for row in rows]
    assert len(cells) == 50 and {len(row) for row in cells} == {4}
    assert [row[1] for row in cells] == [given.classes[label] for label in shown.labels]
    assert {row[2] for row in cells} >= {"none", "class0"}
    side = entry.sprite.single_image_dim[0]
    sheet = Image.open(out / entry.sprite.image_path)
    assert sheet.size == (8 * side, 8 * side)
    # The tenth thumbnail, in the second row, is that sample's picture.
    own, _ = embeddings.sprite(tmp_path / "val.beton", shown.ids[9:10])
    assert (np.asarray(sheet)[side : 2 * side, side : 2 * side] == own).all()


@pytest.mark.parametrize("count", [1, 10_000, 100_000])
def test_the_sprite_stays_within_what_browsers_take(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    class Stored:
        image = np.zeros((4, 6, 3), np.uint8)

    class Container:
        def __init__(self, path: Path) -> None: ...

        def sample(self, index: int) -> Stored:
            return Stored()

    monkeypatch.setattr(embeddings, "OpenContainer", Container)
    monkeypatch.setattr(embeddings, "_thumbnail", lambda image, side: 0)
    sheet, side = embeddings.sprite(Path("x"), np.arange(count))
    assert max(sheet.shape) <= embeddings.SPRITE_PX and side == {100_000: 25}.get(count, 64)


def test_embeddings_need_no_pickle_and_have_names(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    features = np.arange(1200, dtype=np.float32).reshape(600, 2)
    embeddings.write_npz(tmp_path / "e.npz", embeddings.of_result(result, features))
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        assert file["names"][3] == result.names[3] and file["features"].shape == (600, 2)
        assert (file["predicted"] == result.predictions.predicted.numpy()).all()
        assert file["classes"].tolist() == result.data["classes"]
    with pytest.raises(DataError, match="1 features of 600"):
        embeddings.of_result(result, features[:1])


def test_without_containers_the_two_charts_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result_of(tmp_path)
    folder = tmp_path / "run" / "eval" / "pets-cached"
    assert pictures.main([str(folder)]) == 0
    names = sorted(path.name for path in (folder / "pictures").iterdir())
    assert names == ["confusion.png", "per_class.png"]
    assert "--data" in capsys.readouterr().err
    assert read_result(folder).headline == "mean_per_class"


def test_pictures_of_an_earlier_drawing_do_not_stay_beside_these(tmp_path: Path) -> None:
    result_of(tmp_path)
    out = tmp_path / "out"
    (out / "projector").mkdir(parents=True)
    stale = [out / "map.png", out / "embeddings.npz", out / "projector/projector_config.pbtxt"]
    for path in (*stale, out / "notes.txt"):
        path.write_text("old")
    assert pictures.main([str(tmp_path / "run/eval/pets-cached"), "--out", str(out)]) == 0
    assert not any(path.exists() for path in stale) and (out / "notes.txt").exists()
    with locked(out / FOLDER_LOCK, output=out), pytest.raises(HarlError, match="in use by"):
        pictures.main([str(tmp_path / "run/eval/pets-cached"), "--out", str(out)])


def test_a_users_settings_of_matplotlib_change_no_picture(tmp_path: Path) -> None:
    """LaTeX may not be installed, and styles differ from machine to machine."""
    result = result_of(tmp_path)
    expected = pictures.confusion(result)
    with matplotlib.rc_context({"text.usetex": True, "savefig.dpi": 7, "font.family": "serif"}):
        assert pictures.confusion(result) == expected
        assert matplotlib.rcParams["text.usetex"]


def test_other_containers_are_refused(tmp_path: Path) -> None:
    result_of(tmp_path)
    for split in ("train", "val"):
        write_beton(tmp_path / f"{split}.beton", plain_item, count=6)
    with pytest.raises(DataError, match=r"train.beton has the SHA-256 .*the result is of aaaa"):
        pictures.draw(tmp_path / "run" / "eval" / "pets-cached", tmp_path / "out", data=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(HarlError, match=r"package sklearn.*pip install \.\[eval\]") as error:
        charts.check_extra()
    assert "\n" not in str(error.value)


def test_letters_without_a_glyph_are_told_apart(recwarn: pytest.WarningsRecorder) -> None:
    charts.check_extra()
    with charts.style():
        names = [charts.label(name) for name in ("日本", "東京", "café", "Ω")]
        figure, (axes,) = charts.panels(2.0, 2.0)
        charts.bars(axes, ["日本"], [1.0], colours=charts.BLUE, texts=["1"])
        charts.png(figure)
    assert names == ["\\u65e5\\u672c", "\\u6771\\u4eac", "café", "Ω"]
    assert not [each for each in recwarn if "Glyph" in str(each.message)]
