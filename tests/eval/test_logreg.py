"""The optimum of logistic regression against scikit-learn's, over the whole range of C."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from harl_fast.errors import DataError
from harl_fast.eval import logreg
from harl_fast.eval.logreg import CS, optima

CLASSES = 6


def rows(count: int = 300, dim: int = 24, *, noise: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Return correlated features of mean 2 and deviation 3, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.choice(CLASSES, count, p=[0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
    hidden = rng.normal(size=(CLASSES, 12))[labels] + noise * rng.normal(size=(count, 12))
    mixed = hidden @ rng.normal(size=(12, dim)) + 0.2 * rng.normal(size=(count, dim))
    scaled = 2.0 + 3.0 * mixed / mixed.std(0)
    return torch.from_numpy(scaled).float(), torch.from_numpy(labels)


def objective(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, c: float
) -> float:
    scores = x @ weight.T + bias
    losses = logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]
    return float(c * losses.sum() + 0.5 * (weight**2).sum())


@pytest.mark.parametrize("noise", [0.5, 3.0])  # separable, and not
def test_the_optimum_and_predictions_are_those_of_newton_in_float64(noise: float) -> None:
    features, labels = rows(noise=noise)
    x, y = features.double().numpy(), labels.numpy()
    found = list(optima(features, labels, classes=CLASSES))
    assert [each.c for each in found] == pytest.approx(CS) and len(CS) == 45
    agreed = []
    for each in found:
        # lbfgs stops before its tolerance where C is large.
        model = LogisticRegression(C=each.c, tol=1e-10, max_iter=500, solver="newton-cholesky")
        model.fit(x, y)
        ours = objective(x, y, *(v.double().numpy() for v in vars(each.head).values()), each.c)
        theirs = objective(x, y, model.coef_, model.intercept_, each.c)
        assert each.converged
        assert ours == pytest.approx(theirs, rel=1e-6), each.c
        assert each.objective == pytest.approx(ours, rel=1e-6)
        agreed.append(each.head(features).argmax(1).numpy() == model.predict(x))
    assert np.mean(agreed) >= 0.999 and min(map(np.sum, agreed)) >= len(y) - 1


def test_one_c_alone_is_the_one_of_a_sweep() -> None:
    features, labels = rows(noise=2.0)
    sweep = {each.c: each.objective for each in optima(features, labels, classes=CLASSES)}
    for c in CS[::11]:
        (alone,) = optima(features, labels, classes=CLASSES, cs=[c])
        assert alone.objective == pytest.approx(sweep[c], rel=1e-6)


def test_a_start_near_by_saves_passes_and_changes_nothing() -> None:
    features, labels = rows(noise=2.0)
    (cold,) = optima(features, labels, classes=CLASSES, cs=[1.0])
    (warm,) = optima(features, labels, classes=CLASSES, cs=[1.0], start=cold.head)
    assert warm.objective == pytest.approx(cold.objective, rel=1e-6)
    assert warm.evaluations < cold.evaluations / 2


def test_unevenly_spaced_penalties_in_any_order() -> None:
    features, labels = rows(noise=2.0)
    found = list(optima(features, labels, classes=CLASSES, cs=[100.0, 1e-3, 2.0, 0.5]))
    assert [each.c for each in found] == [1e-3, 0.5, 2.0, 100.0]
    for each in found:
        (alone,) = optima(features, labels, classes=CLASSES, cs=[each.c])
        assert each.objective == pytest.approx(alone.objective, rel=1e-6)


def test_float64_goes_on_where_float32_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logreg, "_MOST_STEPS", 12)
    features, labels = rows(noise=2.0)
    (short,) = optima(features, labels, classes=CLASSES, cs=[1.0])
    assert not short.converged and short.evaluations > 24  # 12 in each
    monkeypatch.setattr(logreg, "_MOST_STEPS", 500)
    (whole,) = optima(features, labels, classes=CLASSES, cs=[1.0], tolerance=1e-13)
    assert whole.converged and whole.objective < short.objective


def test_a_class_without_rows_is_never_predicted() -> None:
    features, labels = rows()
    shifted = labels + (labels >= 2).long()  # of seven classes number 2 is missing
    (with_gap,) = optima(features, shifted, classes=7, cs=[1.0])
    (without,) = optima(features, labels, classes=CLASSES, cs=[1.0])
    scores = with_gap.head(features)
    assert torch.isfinite(scores).all() and not (scores.argmax(1) == 2).any()
    kept = [0, 1, 3, 4, 5, 6]
    torch.testing.assert_close(with_gap.head.weight[kept], without.head.weight)


def test_a_constant_feature_gets_no_weight() -> None:
    features, labels = rows()
    padded = torch.cat([features, torch.full((len(features), 1), 7.0)], 1)
    (found,) = optima(padded, labels, classes=CLASSES, cs=[1.0])
    (plain,) = optima(features, labels, classes=CLASSES, cs=[1.0])
    assert float(found.head.weight[:, -1].abs().max()) < 1e-4
    assert found.objective == pytest.approx(plain.objective, rel=1e-6)


def test_equal_features_leave_the_shares_of_the_classes() -> None:
    """As of an encoder that has collapsed: the start is the optimum, and has no gradient."""
    for counts in ((8, 8), (12, 4)):
        labels = torch.arange(2).repeat_interleave(torch.tensor(counts))
        for found in optima(torch.zeros(16, 5), labels, classes=2, cs=[1e-3, 1.0]):
            shares = found.head(torch.zeros(1, 5)).softmax(1)[0]
            assert found.converged and shares.tolist() == pytest.approx([n / 16 for n in counts])


def test_one_class_is_refused() -> None:
    features, _ = rows(20)
    with pytest.raises(DataError, match="of 1 class"):
        list(optima(features, torch.zeros(20, dtype=torch.int64), classes=3))


@pytest.mark.parametrize("c", [1e-5, 1e-4])
def test_an_optimum_that_one_step_reaches_ends(c: float) -> None:
    # The penalty outweighs the loss, whose steps to the optimum then leave nothing but rounding.
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 100, (2000,), generator=generator)
    centres = torch.randn(100, 64, generator=generator)
    features = centres[labels] + 3.0 * torch.randn(2000, 64, generator=generator)
    features /= torch.arange(1, 65).sqrt()
    features = (features - features.mean(0)) / features.std(0)
    (found,) = optima(features, labels, classes=100, cs=[c])
    assert found.converged and found.evaluations < 30
    ours = objective(
        features.double().numpy(),
        labels.numpy(),
        *(v.double().numpy() for v in vars(found.head).values()),
        c,
    )
    assert found.objective == pytest.approx(ours, rel=1e-6)
