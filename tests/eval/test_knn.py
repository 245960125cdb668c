"""The weighted vote against scikit-learn."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from harl_fast.errors import ConfigError
from harl_fast.eval import knn as knn_module
from harl_fast.eval.features import FeatureSet
from harl_fast.eval.knn import _above, knn, knn_accuracy, nearest
from harl_fast.eval.metrics import Metrics, accuracies, from_logits, scores


def clusters(seed: int, *, rows: int, classes: int = 8, dim: int = 16) -> FeatureSet:
    centres = np.random.default_rng(0).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    features = centres[labels] + 2.0 * rng.normal(size=(rows, dim))
    return FeatureSet(torch.from_numpy(features).float(), torch.from_numpy(labels))


def oracle(train: FeatureSet, test: FeatureSet, *, k: int, temperature: float) -> Metrics:
    model = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    model.fit(train.features.double().numpy(), train.labels.numpy())
    votes = model.predict_proba(test.features.double().numpy())
    return from_logits(torch.from_numpy(votes), test.labels, classes=votes.shape[1])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (200, 0.2)])
def test_equal_to_scikit_learn(k: int, temperature: float) -> None:
    train, test = clusters(1, rows=500), clusters(2, rows=300)
    got = knn_accuracy(train, test, classes=8, k=k, temperature=temperature)
    # Equal at any rounding: similarities at the k-th place are 3e-6 apart or more, votes 4e-5.
    expected = oracle(train, test, k=k, temperature=temperature)
    assert asdict(got) == pytest.approx(asdict(expected), rel=1e-12)
    assert 30 < got.top1 < 95  # the case is neither trivial nor hopeless


@pytest.mark.parametrize("chunk", [1, 7, 300, 1000])
def test_the_chunk_does_not_matter(chunk: int) -> None:
    train, test = clusters(1, rows=200), clusters(2, rows=300)
    got, expected = (
        nearest(train.features, test.features, k=20, chunk=each) for each in (chunk, None)
    )
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[0], expected[0])


def test_more_neighbours_than_samples_means_all_of_them() -> None:
    train, test = clusters(1, rows=15), clusters(2, rows=50)
    every = knn_accuracy(train, test, classes=8, k=15)
    assert knn_accuracy(train, test, classes=8, k=20) == every


def test_the_length_of_a_feature_does_not_matter() -> None:
    train, test = clusters(1, rows=200), clusters(2, rows=100)
    scale = torch.linspace(0.1, 10, 200)[:, None]
    scaled = FeatureSet(train.features * scale, train.labels)
    got, expected = knn_accuracy(scaled, test, classes=8), knn_accuracy(train, test, classes=8)
    # Float32 rounding of the scaling can swap two neighbours of equal similarity.
    assert got.top1 == pytest.approx(expected.top1, abs=1.0)


def test_collapsed_features_do_not_pass_for_an_accuracy() -> None:
    train = FeatureSet(torch.ones(80, 4), torch.arange(80) % 8)
    test = FeatureSet(torch.ones(40, 4), torch.arange(40) % 8)
    assert knn_accuracy(train, test, classes=8, k=80).top1 == 0.0


def test_one_search_serves_every_k() -> None:
    train, test = clusters(1, rows=500), clusters(2, rows=300)
    found = knn(train, test, classes=8, ks=(10, 1, 200), temperature=0.2)
    assert list(found) == [10, 1, 200]
    for k, predicted in found.items():
        expected = oracle(train, test, k=k, temperature=0.2)
        got = scores(predicted, classes=8)
        assert got["top1"].value == pytest.approx(expected.top1), k
        assert got["top5"].value == pytest.approx(expected.top5), k
        assert got["mean_per_class"].value == pytest.approx(expected.mean_per_class), k


@pytest.mark.parametrize("block", [64, 700, 5000, 1 << 24])
def test_blocks_of_any_size_find_the_same(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_module, "BLOCK", block)
    train, test = clusters(1, rows=533), clusters(2, rows=90)
    values, index = nearest(train.features, test.features, k=30)
    x, y = (d.features.double().numpy() for d in (train, test))
    cosines = (y / np.linalg.norm(y, axis=1)[:, None]) @ (x / np.linalg.norm(x, axis=1)[:, None]).T
    order = np.argsort(-cosines, axis=1)[:, :30]
    assert np.array_equal(index.numpy(), order)
    # A dot product of 16 float32 terms of length one in all.
    np.testing.assert_allclose(values.numpy(), np.take_along_axis(cosines, order, 1), atol=1e-6)


def test_what_is_above_a_floor_is_packed_row_by_row() -> None:
    values = torch.randn(20, 500, generator=torch.Generator().manual_seed(0))
    floor = torch.linspace(-1, 4, 20)[:, None]
    found, columns = _above(values, floor)
    assert found.shape[1] == (values > floor).sum(1).max()
    for row in range(20):
        above = (values[row] > floor[row]).nonzero().flatten()
        assert torch.equal(columns[row, : len(above)], above)
        assert torch.equal(found[row, : len(above)], values[row, above])
        assert found[row, len(above) :].isneginf().all()


@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_a_bank_in_order_of_similarity_finds_the_same(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn_module, "BLOCK", 64)
    angles = {
        "ascending": torch.linspace(1.5, 0.1, 100),
        "descending": torch.linspace(0.1, 1.5, 100),
        "equal": torch.ones(100),
    }[order]
    bank = torch.stack([angles.cos(), angles.sin()], 1)
    values, index = nearest(bank, torch.tensor([[1.0, 0.0]]), k=7)
    expected = angles.cos().sort(descending=True).values[:7]
    torch.testing.assert_close(values[0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(angles[index[0]].cos(), expected, atol=1e-6, rtol=0)
    assert index.unique().numel() == 7


def test_more_neighbours_than_samples_are_refused() -> None:
    train = clusters(1, rows=15)
    with pytest.raises(ConfigError, match="--knn 20: the training set has 15 samples"):
        knn(train, train, classes=8, ks=(10, 20))


@pytest.mark.parametrize("temperature", [1e-3, 1e-2])
def test_far_neighbours_vote_at_a_low_temperature(temperature: float) -> None:
    """At a cosine of 0.5 exp((s - 1) / T) would be nothing in float32."""
    directions = torch.eye(8)
    train = FeatureSet(directions, torch.arange(8))
    test = FeatureSet(directions + directions.roll(1, 0) * 1.7, torch.arange(8).roll(1))
    found = knn(train, test, classes=8, ks=(5,), temperature=temperature)
    assert accuracies(found[5], classes=8).top1 == 100.0


def test_no_query_has_no_neighbours_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_module, "BLOCK", 16)
    found = nearest(torch.eye(8), torch.zeros(0, 8), k=3)
    assert [tuple(each.shape) for each in found] == [(0, 3), (0, 3)]


@pytest.mark.parametrize(
    ("samples", "k", "said"),
    [
        (0, 1, "--knn 1: the training set has 0 samples"),
        (2, 3, "--knn 3: the training set has 2 samples"),
        (2, 0, "k 0: give a whole number from 1 on"),
        (2, 1.0, r"k 1\.0: give a whole number from 1 on"),
    ],
)
def test_neighbours_that_there_cannot_be_are_refused(samples: int, k: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        nearest(torch.ones(samples, 4), torch.ones(5, 4), k=k)
