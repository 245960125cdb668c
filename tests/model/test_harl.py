"""The composed loss: from views and cells to one number, and where its gradient goes."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from harl_fast.config import ModelConfig
from harl_fast.errors import ConfigError
from harl_fast.model.ema import ema_pairs, ema_update
from harl_fast.model.harl import HARL, convert_sync_bn, effective_rank
from harl_fast.model.loss import term_weights
from harl_fast.model.norm import RankBatchNorm2d
from tests.model.support import ALPHA, BATCH, BETA, REGIONS, batch, build, composed, plain, regional
from tests.oracles import losses as oracle


@pytest.mark.parametrize("loss_type", REGIONS)
def test_loss_is_the_one_composed_from_its_parts(loss_type: str) -> None:
    model = build(loss_type)
    views, cells = batch()
    terms = composed(copy.deepcopy(model), views, cells.unbind(1))
    loss, logs = model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
    expected = oracle.total(loss_type, terms, alpha=ALPHA, beta=BETA)
    # Float64 through two BatchNorm heads; the sums have at most a few hundred terms.
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert {key for key in logs if key.startswith("loss/")} == {f"loss/{name}" for name in terms}
    for name, value in terms.items():
        assert logs[f"loss/{name}"].item() == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("loss_type", REGIONS)
def test_spread_is_summed_over_views_and_averaged_over_regions(loss_type: str) -> None:
    model = build(loss_type, spread=3.0)
    views, cells = batch()
    without, _ = build(loss_type)(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
    networks = copy.deepcopy(model)
    loss, logs = model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
    means = []
    for region in REGIONS[loss_type]:
        for view, grid in zip(views, cells.unbind(1), strict=True):
            mask = {"whole": torch.ones_like(grid), "fg": grid, "bg": 1 - grid}[region]
            rows, enough = oracle.masked_mean(
                networks.backbone(view).detach().numpy(), mask.numpy(), min_area=1e-3
            )
            q = plain(networks.projector)(torch.tensor(rows)).detach().numpy()
            means.append(oracle.vicreg_spread(q[enough]))
    expected = 2.0 * np.mean(means)
    assert logs["loss/spread"].item() == pytest.approx(expected, rel=1e-10)
    assert loss.item() == pytest.approx(without.item() + 3.0 * expected, rel=1e-10)


@pytest.mark.parametrize("loss_type", REGIONS)
def test_contrast_is_weighted_as_the_regions_are(loss_type: str) -> None:
    views, cells = batch()
    without, plain_logs = build(loss_type)(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
    model = build(loss_type, contrast=2.0, temperature=0.5)
    networks = copy.deepcopy(model)
    loss, logs = model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
    weights = term_weights(model.loss, alpha=ALPHA, beta=BETA)
    expected = 0.0
    for region in REGIONS[loss_type]:
        p, z, (first, second) = regional(networks, views, cells.unbind(1), region=region)
        usable = first & second
        for one, other in ((0, 1), (1, 0)):
            found = oracle.infonce(p[one][usable], z[other][usable], temperature=0.5)
            expected += weights[region] * found / BATCH
    assert logs["loss/contrast"].item() == pytest.approx(expected, rel=1e-9)
    assert loss.item() == pytest.approx(without.item() + 2.0 * expected, rel=1e-9)
    assert all(logs[name] == value for name, value in plain_logs.items())


@pytest.mark.parametrize("loss_type", REGIONS)
def test_views_of_different_sizes_are_matched_alike(loss_type: str) -> None:
    model = build(loss_type)
    views, cells = batch()
    generator = torch.Generator().manual_seed(9)
    large = torch.randn(BATCH, 3, 24, 24, dtype=torch.float64, generator=generator)
    grids = [cells[:, 0], torch.rand(BATCH, 6, 6, dtype=torch.float64, generator=generator)]
    terms = composed(copy.deepcopy(model), [views[0], large], grids)
    loss, logs = model([views[0], large], grids, alpha=ALPHA, beta=BETA)
    assert loss.item() == pytest.approx(
        oracle.total(loss_type, terms, alpha=ALPHA, beta=BETA), rel=1e-10
    )
    assert logs["fg"].item() == pytest.approx(sum(g.mean().item() for g in grids) / 2)


@pytest.mark.parametrize("loss_type", REGIONS)
def test_exchanging_the_views_keeps_the_loss(loss_type: str) -> None:
    model = build(loss_type)
    views, cells = batch()
    loss, _ = model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
    swapped, _ = model(views[::-1], cells.flip(1).unbind(1), alpha=ALPHA, beta=BETA)
    torch.testing.assert_close(loss, swapped, rtol=1e-10, atol=0.0)


def test_gradient_reaches_all_of_the_online_and_none_of_the_target_network() -> None:
    model = build("byol+f_loss+b_loss")
    views, cells = batch()
    model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())


def test_each_backbone_runs_once_a_view_and_each_head_once() -> None:
    model = build("byol+f_loss+b_loss")
    calls: dict[str, int] = {}
    for network, prefix in ((model, ""), (model.target, "target.")):
        for name, child in network.named_children():
            key = prefix + name
            calls[key] = 0

            def count(*_: object, key: str = key) -> None:
                calls[key] += 1

            child.register_forward_hook(count)
    views, cells = batch()
    model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
    assert calls == {
        "backbone": 2,
        "projector": 1,
        "predictor": 1,
        "target.backbone": 2,
        "target.projector": 1,
    }


def test_a_term_whose_weight_is_zero_at_this_step_is_not_computed() -> None:
    model = build("byol+f_loss+b_loss")
    views, cells = batch()
    _, logs = model(views, cells.unbind(1), alpha=1.0, beta=0.0)
    assert [key for key in logs if key.startswith("loss/")] == ["loss/fg"]


def test_byol_ignores_the_cells() -> None:
    views, cells = batch()
    losses = [
        build("byol")(views, c.unbind(1), alpha=ALPHA, beta=BETA)[0] for c in (cells, 1 - cells)
    ]
    assert torch.equal(*losses)


def test_full_masks_make_the_foreground_the_whole_image() -> None:
    views, cells = batch()
    full = torch.ones_like(cells)
    whole, _ = build("byol")(views, full.unbind(1), alpha=ALPHA, beta=BETA)
    fg, _ = build("f_loss")(views, full.unbind(1), alpha=ALPHA, beta=BETA)
    torch.testing.assert_close(fg, whole, rtol=1e-10, atol=0.0)


def test_empty_masks_give_a_zero_foreground_term_and_finite_gradients() -> None:
    model = build("f_loss")
    views, cells = batch()
    loss, logs = model(views, torch.zeros_like(cells).unbind(1), alpha=ALPHA, beta=BETA)
    loss.backward()
    assert loss.item() == 0.0 and logs["empty"].item() == 1.0 and logs["fg"].item() == 0.0
    for parameter in model.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_figures_count_rows_without_foreground_in_either_view() -> None:
    model = build("byol+f_loss")
    views, cells = batch()
    _, logs = model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
    assert logs["empty"].item() == pytest.approx(2 / BATCH)
    assert logs["fg"].item() == pytest.approx(cells.mean().item())
    assert 0.0 < logs["z_std"].item() < 1.5


def test_z_std_is_one_when_spread_and_zero_when_collapsed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("byol")
    views, cells = batch()
    for scale, expected, slack in ((0.0, 0.0, 1e-9), (1.0, 1.0, 0.05)):
        rows = torch.randn(2 * BATCH, 4096, dtype=torch.float64) * scale + (scale == 0.0)
        monkeypatch.setattr(model.target.projector, "forward", lambda _, groups, z=rows: z)
        model.predictor.out = nn.Linear(16, 4096, bias=False).double()
        _, logs = model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
        assert logs["z_std"].item() == pytest.approx(expected, abs=slack)


@pytest.mark.parametrize(("count", "dim"), [(40, 8), (8, 40)])
def test_effective_rank_is_the_entropy_of_the_singular_values(count: int, dim: int) -> None:
    rows = torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    rows = rows * torch.logspace(0, -3, dim, dtype=torch.float64) + 5.0
    singular = np.linalg.svd((rows - rows.mean(0)).numpy(), compute_uv=False)
    share = singular[singular > 1e-12] / singular.sum()
    expected = float(np.exp(-(share * np.log(share)).sum()))
    # The Gram matrix keeps half the digits of small singular values.
    assert effective_rank(rows).item() == pytest.approx(expected, rel=1e-6)


def test_effective_rank_counts_even_dimensions_and_survives_what_is_not_finite() -> None:
    even = torch.cat([torch.eye(6), -torch.eye(6)])
    assert effective_rank(even).item() == pytest.approx(6.0, rel=1e-5)
    line = torch.linspace(0, 1, 9)[:, None] * torch.ones(5)
    assert effective_rank(line).item() == pytest.approx(1.0, abs=0.02)
    assert effective_rank(torch.full((4, 3), torch.nan)).item() == 1.0


@pytest.mark.parametrize("scale", [1e-30, 1e25, 1e38])
@pytest.mark.parametrize("shape", [(20, 8), (8, 20)])
def test_effective_rank_is_the_same_at_any_scale(shape: tuple[int, int], scale: float) -> None:
    """A run that diverges has features whose squares are infinite, and goes on to tell of it."""
    rows = torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = effective_rank(rows).item()
    assert effective_rank(rows * scale).item() == pytest.approx(expected, rel=1e-2)


def test_the_target_is_hidden_but_moves_along() -> None:
    model = build("byol")
    assert not [name for name, _ in model.named_parameters() if "target" in name]
    assert not [name for name in model.state_dict() if "target" in name]
    model.float()
    assert {p.dtype for p in model.target.parameters()} == {torch.float32}
    assert model.eval().target.training


def test_the_target_begins_as_a_copy_and_ema_parts_follow() -> None:
    model = HARL(ModelConfig(arch="resnet18", width=0.125))
    online = {**model.state_dict()}
    for name, value in model.target.state_dict().items():
        assert torch.equal(value, online[name]) and value.data_ptr() != online[name].data_ptr()
    followers, leaders = ema_pairs(model.target, model)
    with torch.no_grad():
        leaders[0].add_(1.0)
    expected = followers[0] + 0.25
    ema_update(followers, leaders, tau=0.75)
    torch.testing.assert_close(followers[0], expected)


def test_autocast_keeps_the_loss_in_float32_and_close() -> None:
    views, cells = batch()
    model = build("byol+f_loss+b_loss").float()
    singles, cells = [v.float() for v in views], cells.float()
    exact, _ = copy.deepcopy(model)(singles, cells.unbind(1), alpha=ALPHA, beta=BETA)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model(singles, cells.unbind(1), alpha=ALPHA, beta=BETA)
    assert loss.dtype == torch.float32
    loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    # Some twenty bfloat16 layers of 2^-9 relative rounding each.
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.0)


def test_channels_last_views_give_the_same_loss() -> None:
    model = build("byol+f_loss")
    views, cells = batch()
    loss, _ = model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
    last = [view.to(memory_format=torch.channels_last) for view in views]
    again, _ = model(last, cells.unbind(1), alpha=ALPHA, beta=BETA)
    torch.testing.assert_close(loss, again, rtol=1e-10, atol=0.0)


def test_cells_of_another_size_are_refused() -> None:
    views, _ = batch()
    with pytest.raises(ValueError, match=r"\(7, 7\) cells meet a feature map of \(4, 4\)"):
        build("f_loss")(views, torch.ones(BATCH, 2, 7, 7).unbind(1), alpha=ALPHA, beta=BETA)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_cells_of_another_number_of_views_are_refused(count: int) -> None:
    views, cells = batch()
    grids = [*cells.unbind(1), cells[:, 0]][:count]
    with pytest.raises(ValueError, match=f"cells of {count} views for 2 views: give one each"):
        build("f_loss")(views, grids, alpha=ALPHA, beta=BETA)


@pytest.mark.parametrize(
    ("roles", "told"),
    [
        (("online", "both", "both"), "first two or more of role both, then those of role online"),
        (("both", "online"), "2 of roles both, online; give 2 to 16 views, first two"),
        (("both", "both", "onlin"), r"views\.2\.role: Input should be 'both' or 'online'"),
        ("both", r"views\.0\.role: Input should be 'both' or 'online' \(got 'b'\)"),
    ],
)
def test_roles_that_a_configuration_refuses_are_refused(roles: Sequence[str], told: str) -> None:
    with pytest.raises(ConfigError, match=rf"^roles: .*{told}"):
        build("byol", roles=roles)


def test_the_cells_of_a_view_without_pixels_are_refused() -> None:
    for size_px in (0, "32"):
        with pytest.raises(ConfigError, match=f"size_px {size_px!r}: give a whole number"):
            build("byol").feature_size(size_px)  # type: ignore[arg-type]


def test_sync_bn_modes() -> None:
    model = build("byol")
    views, cells = batch()
    before, _ = model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
    convert_sync_bn(model, "none")
    convert_sync_bn(model, "heads")
    norms = (*model.projector.norms, *model.predictor.norms, *model.target.projector.norms)
    assert all(norm.synced for norm in norms)
    assert torch.equal(before, model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)[0])
    convert_sync_bn(model, "all")
    for backbone in (model.backbone, model.target.backbone):
        kinds = {type(m) for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)}
        assert kinds == {RankBatchNorm2d}
    assert torch.equal(before, model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)[0])
    with pytest.raises(ConfigError, match="'some'"):
        convert_sync_bn(model, "some")
