"""More than two views: which meet which, and that two keep the bits of the formula for two."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from harl_fast.config import ModelConfig
from harl_fast.model.harl import HARL
from harl_fast.model.loss import LOSS_TERMS, region_distance, spread_penalty, term_weights
from tests.model.support import ALPHA, BATCH, BETA, REGIONS, batch, build, composed, plain, regional
from tests.oracles import losses as oracle

MULTICROP = ("both", "both", "online", "online")


def crops() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the batch with two small views more, of which one has no foreground in a row."""
    views, cells = batch()
    grids = [*cells.unbind(1)]
    generator = torch.Generator().manual_seed(5)
    for empty in (3, 4):
        small = torch.randn(BATCH, 3, 8, 8, dtype=torch.float64, generator=generator)
        grid = torch.rand(BATCH, 2, 2, dtype=torch.float64, generator=generator)
        grid[empty] = 0.0
        views, grids = [*views, small], [*grids, grid]
    return views, grids


@pytest.mark.parametrize("predictor_per", ["network", "role"])
@pytest.mark.parametrize("loss_type", REGIONS)
def test_small_views_are_matched_with_the_targets_of_the_large_ones(
    loss_type: str, predictor_per: Literal["network", "role"]
) -> None:
    model = build(loss_type, roles=MULTICROP, predictor_per=predictor_per, contrast=0.5, spread=2.0)
    views, cells = crops()
    networks = copy.deepcopy(model)
    loss, logs = model(views, cells, alpha=ALPHA, beta=BETA)
    terms = composed(copy.deepcopy(networks), views, cells)
    weights = term_weights(model.loss, alpha=ALPHA, beta=BETA)
    contrasted, spreads = 0.0, []
    for region in REGIONS[loss_type]:
        p, z, usable = regional(networks, views, cells, region=region)
        found = oracle.mean_over_pairs(p, z, usable, temperature=model.loss.temperature)
        contrasted += weights[region] * found
        for view, grid in zip(views, cells, strict=True):
            mask = {"whole": torch.ones_like(grid), "fg": grid, "bg": 1 - grid}[region]
            maps = networks.backbone(view).detach().numpy()
            rows, enough = oracle.masked_mean(maps, mask.numpy(), min_area=1e-3)
            q = plain(networks.projector)(torch.tensor(rows)).detach().numpy()
            spreads.append(oracle.vicreg_spread(q[enough]))
    for name, value in terms.items():
        assert logs[f"loss/{name}"].item() == pytest.approx(value, rel=1e-10)
    assert logs["loss/contrast"].item() == pytest.approx(contrasted, rel=1e-9)
    assert logs["loss/spread"].item() == pytest.approx(2.0 * np.mean(spreads), rel=1e-10)
    whole = oracle.total(loss_type, terms, alpha=ALPHA, beta=BETA)
    expected = whole + 0.5 * contrasted + 2.0 * 2.0 * np.mean(spreads)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    area = [grid.flatten(1).sum(1) > 1e-3 * grid[0].numel() for grid in cells]
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    shares = [(area[i] & area[j]).double().mean().item() for i, j in pairs]
    assert logs["empty"].item() == pytest.approx(1.0 - float(np.mean(shares)))
    assert logs["fg"].item() == pytest.approx(float(np.mean([g.mean().item() for g in cells])))


def two_view_loss(
    model: HARL, views: Sequence[torch.Tensor], cells: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the loss as it was written when there were two views, operation by operation."""
    weights = term_weights(model.loss, alpha=ALPHA, beta=BETA)
    weights = {term: weight for term, weight in weights.items() if weight}
    cut = [LOSS_TERMS[term].region for term in weights]
    regions = [None if region is None else [region(grid) for grid in cells] for region in cut]
    shape = (2, len(weights), BATCH, -1)
    with torch.no_grad():
        rows, _ = model._pooled(model.target.backbone, views, regions)
        rows = torch.stack(rows, 1).flatten(0, 2)
        z = model.target.projector(rows, groups=2 * len(weights)).view(shape)
    rows, usable = model._pooled(model.backbone, views, regions)
    rows = torch.stack(rows, 1).flatten(0, 2)
    q = model.projector(rows, groups=2 * len(weights))
    p = model.predictor(q, groups=2 * len(weights)).view(shape)

    def contrasted(p: torch.Tensor, z: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        cosines = (
            functional.normalize(p, dim=1, eps=1e-6) @ functional.normalize(z, dim=1, eps=1e-6).T
        )
        cosines = cosines / model.loss.temperature
        logits = cosines.masked_fill(~(counts[:, None] & counts), -1e9)
        missed = functional.cross_entropy(logits, torch.arange(BATCH), reduction="none")
        return (missed * counts).mean()

    terms, contrasts = [], []
    for i, weight in enumerate(weights.values()):
        counts = usable[:, i].all(0)
        distance = region_distance(p[0, i], z[1, i]) + region_distance(p[1, i], z[0, i])
        terms.append(weight * (distance * counts).mean())
        first = contrasted(p[0, i], z[1, i], counts)
        contrasts.append(weight * (first + contrasted(p[1, i], z[0, i], counts)))
    rows_of = zip(q.unflatten(0, (2 * len(weights), -1)), usable.flatten(0, 1), strict=True)
    spreads = [spread_penalty(rows, usable=counts) for rows, counts in rows_of]
    extra = model.loss.contrast * torch.stack(contrasts).sum()
    terms += [extra, model.loss.spread * (torch.stack(spreads).mean() * 2)]
    return torch.stack(terms).sum()


@pytest.mark.parametrize("roles", [(), ("both", "both")])
@pytest.mark.parametrize("loss_type", REGIONS)
def test_two_views_have_the_very_bits_of_the_formula_for_two(
    loss_type: str, roles: Sequence[str]
) -> None:
    views, cells = batch()
    views, grids = [view.float() for view in views], cells.float().unbind(1)
    model = build(loss_type, roles=roles, predictor_per="role", contrast=0.7, spread=0.3).float()
    assert model.state_dict().keys() == HARL(ModelConfig(arch="resnet18")).state_dict().keys()
    before = copy.deepcopy(model)
    loss, _ = model(views, grids, alpha=ALPHA, beta=BETA)
    expected = two_view_loss(before, views, grids)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(model.named_parameters(), before.parameters(), strict=True):
        assert ours.grad is not None and torch.equal(ours.grad, theirs.grad), name


def test_a_view_of_role_online_never_meets_the_target() -> None:
    model = build("byol+f_loss", roles=MULTICROP)
    views, cells = crops()
    seen: dict[nn.Module, list[torch.Tensor]] = {model.backbone: [], model.target.backbone: []}
    for backbone, images in seen.items():
        backbone.register_forward_pre_hook(lambda _, inputs, images=images: images.extend(inputs))
    model(views, cells, alpha=ALPHA, beta=BETA)
    online, target = seen.values()
    assert [id(view) for view in online] == [id(view) for view in views]
    assert [id(view) for view in target] == [id(view) for view in views[:2]]


def test_all_of_the_online_network_learns_from_many_views_and_none_of_the_target() -> None:
    model = build("byol+f_loss", roles=MULTICROP, predictor_per="role")
    shared = build("byol+f_loss", roles=MULTICROP).state_dict().keys()
    added = model.state_dict().keys() - shared
    assert added and all(name.startswith("online_predictor.") for name in added)
    views, cells = crops()
    model(views, cells, alpha=ALPHA, beta=BETA)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())


@pytest.mark.parametrize(("count", "roles"), [(1, ()), (3, MULTICROP)])
def test_views_that_are_too_few_are_refused(count: int, roles: Sequence[str]) -> None:
    views, cells = crops()
    with pytest.raises(ValueError, match=f"{count} views for roles both"):
        build("byol", roles=roles)(views[:count], cells[:count], alpha=ALPHA, beta=BETA)
