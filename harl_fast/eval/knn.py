"""Weighted nearest-neighbour classification of frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from harl_fast.errors import ConfigError
from harl_fast.eval.features import FeatureSet
from harl_fast.eval.matmul import matmul
from harl_fast.eval.metrics import Metrics, Predictions, accuracies, predictions
from harl_fast.eval.options import NEIGHBOURS, TEMPERATURE
from harl_fast.eval.ranks import ALONE, Ranks
from harl_fast.options import check_whole

HEADLINE = 20
"""The k to quote, fixed beforehand: the value DINO reports best."""
BLOCK = 1 << 22
"""Numbers of the bank, and similarities, that are held at once (16 MB each)."""


def knn_accuracy(
    train: FeatureSet,
    test: FeatureSet,
    *,
    classes: int,
    k: int = HEADLINE,
    temperature: float = TEMPERATURE,
    device: torch.device | None = None,
) -> Metrics:
    """Return the accuracies of a vote of the k nearest training samples, see `knn`.

    k is lowered to the size of the training set when that is smaller.
    """
    k = min(k, max(1, train.labels.shape[0]))
    found = knn(train, test, classes=classes, ks=(k,), temperature=temperature, device=device)
    return accuracies(found[k], classes=classes)


def knn(
    train: FeatureSet,
    test: FeatureSet,
    *,
    classes: int,
    ks: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    device: torch.device | None = None,
    ranks: Ranks = ALONE,
) -> dict[int, Predictions]:
    """Return for each k what a vote of the k nearest training samples by cosine predicts.

    A neighbour of similarity s votes for its class with weight exp(s / temperature) (Wu et al.,
    Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018). All k
    share one search. ranks: who share the training samples; rank 0 has them all, and the answer,
    which on others is of no sample. Raises ConfigError, see `check_neighbours`.
    """
    device = device or torch.device("cpu")
    (samples,) = ranks.agree(train.labels.shape[0])
    check_neighbours(ks, samples=samples)
    similarity, index = nearest(
        train.features, test.features, k=max(ks), device=device, ranks=ranks
    )
    labels, rows = train.labels.to(device), max(1, BLOCK // classes)
    found: dict[int, list[Predictions]] = {k: [] for k in ks}
    for part, near, truth in zip(
        similarity.split(rows), index.split(rows), test.labels.split(rows), strict=True
    ):
        for k in ks:
            votes = _votes(
                part[:, :k], labels[near[:, :k]], classes=classes, temperature=temperature
            )
            found[k].append(predictions(votes, truth))
    return {k: Predictions.joined(parts) for k, parts in found.items()}


def check_neighbours(ks: Sequence[int], *, samples: int) -> None:
    """Raise ConfigError for a k below 1 or above the number of training samples."""
    for k in sorted(ks, reverse=True):
        check_whole(1, k=k)
        if k > samples:
            raise ConfigError(
                f"--knn {k}: the training set has {samples} samples; give numbers up to that"
            )


def nearest(
    bank: Tensor,
    queries: Tensor,
    *,
    k: int,
    chunk: int | None = None,
    device: torch.device | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Tensor]:
    """Return the k largest cosines of each query with the bank's rows, and these rows' numbers.

    bank: (N, D), N >= k, and queries: (M, D), float32 on any device. Both go to ``device`` in
    blocks of at most `BLOCK` numbers, and so do similarities; chunk: queries in a block instead.
    Returns (M, k) float32, descending, and (M, k) int64 on ``device``. ranks: each searches its
    part of rank 0's bank, in host memory, and rank 0 takes the best of all; others return (0, k).
    Raises ConfigError, see `check_neighbours`.
    """
    device = device or bank.device
    (total,) = ranks.agree(bank.shape[0])
    check_neighbours((k,), samples=total)
    if ranks.count == 1:
        return _nearest(bank, queries, k=k, chunk=chunk, device=device)
    own, queries = ranks.scatter(bank), ranks.broadcast(queries)
    values, index = _nearest(own, queries, k=min(k, own.shape[0]), chunk=chunk, device=device)
    index += ranks.part(total).start
    # Of a bank that is smaller than k per rank, places stay empty.
    empty = (0, k - values.shape[1])
    values, index = functional.pad(values, empty, value=-torch.inf), functional.pad(index, empty)
    every = len(queries) * ranks.count
    values, index = (ranks.gather(each.cpu(), total=every) for each in (values, index))
    if ranks.rank:
        return values.to(device), index.to(device)
    by_rank = (ranks.count, len(queries), k)
    values, index = (each.view(by_rank).transpose(0, 1).flatten(1) for each in (values, index))
    values, order = values.topk(k, dim=1)
    return values.to(device), index.gather(1, order).to(device)


def _nearest(
    bank: Tensor, queries: Tensor, *, k: int, chunk: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Do what `nearest` does, on one rank."""
    width = max(1, BLOCK // bank.shape[1])
    rows = chunk or max(1, BLOCK // min(width, bank.shape[0]))
    parts = functional.normalize(queries, dim=1).split(rows)
    values = [torch.full((len(part), k), -torch.inf, device=device) for part in parts]
    index = [torch.zeros(each.shape, dtype=torch.int64, device=device) for each in values]
    for start in range(0, bank.shape[0], width):
        block = functional.normalize(bank[start : start + width].to(device), dim=1)
        for number, part in enumerate(parts):
            similarity = matmul(part.to(device), block.T)
            if start == 0:
                near, columns = similarity.topk(min(k, len(block)), dim=1, sorted=False)
            else:
                near, columns = _above(similarity, values[number].amin(1, keepdim=True))
            every = torch.cat([values[number], near], 1)
            values[number], order = every.topk(k, dim=1, sorted=False)
            index[number] = torch.cat([index[number], columns + start], 1).gather(1, order)
    found, order = torch.cat(values).sort(dim=1, descending=True)
    return found, torch.cat(index).gather(1, order)


def _above(values: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's values (M, N) above its floor (M, 1), and their column numbers.

    Both are (M, C), C being the most of any row; the places that others leave hold -inf. After the
    first blocks of a bank few similarities are above the k-th largest so far, and finding them
    takes less time than the k largest of each block.
    """
    row, column = (values > floor).nonzero().unbind(1)
    counts = torch.bincount(row, minlength=len(values))
    place = torch.arange(len(row), device=values.device) - (counts.cumsum(0) - counts)[row]
    shape = (len(values), int(counts.max()) if len(counts) else 0)
    found = values.new_full(shape, -torch.inf)
    columns = torch.zeros(shape, dtype=torch.int64, device=values.device)
    found[row, place], columns[row, place] = values[row, column], column
    return found, columns


def _votes(similarity: Tensor, labels: Tensor, *, classes: int, temperature: float) -> Tensor:
    # Less the nearest one's, which scales all votes of a row alike: however far that is and however
    # low the temperature, it has a vote.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = torch.zeros(similarity.shape[0], classes, device=similarity.device)
    return votes.scatter_add_(1, labels, weights)
