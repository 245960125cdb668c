"""The method: an online and a target network, matched over regions of two views or more."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from harl_fast.config import DataConfig, LossConfig, ModelConfig
from harl_fast.errors import ConfigError
from harl_fast.model.backbone import LAST_LEVEL, Backbone
from harl_fast.model.backbones import build_backbone
from harl_fast.model.heads import MLPHead
from harl_fast.model.loss import LOSS_TERMS, term_weights, total_loss, view_pairs
from harl_fast.model.norm import GroupedBatchNorm1d
from harl_fast.model.pooling import cell_weight, global_mean, has_area, masked_mean
from harl_fast.model.precision import widened, without_autocast
from harl_fast.section import validated


class Target(nn.Module):
    """Backbone and projector that follow the online ones (`model.ema`) and take no gradient.

    They stay in training mode: BatchNorm uses the batch's statistics, as in BYOL, and the running
    statistics are those of the target's own passes.
    """

    def __init__(
        self, backbone: Backbone, projector: MLPHead, region_projector: MLPHead | None = None
    ) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.projector = copy.deepcopy(projector)
        self.region_projector = copy.deepcopy(region_projector)
        self.requires_grad_(False).train()


class HARL(nn.Module):
    """Online backbone, projector and predictor, and beside them the target.

    The target is no registered submodule: it appears neither in parameters() nor in the state
    dict, so that an engine neither casts, shards nor saves it. It follows `to` and its kin.
    Both networks may run under autocast; pooling and loss then still run in float32.
    """

    def __init__(
        self,
        model: ModelConfig | None = None,
        loss: LossConfig | None = None,
        *,
        backbone: Backbone | None = None,
        roles: Sequence[str] = (),
    ) -> None:
        """model, loss: configuration sections; left out, their defaults.

        backbone: taken as it is, in place of the one that ``model`` describes. roles: of the views
        that `forward` will be given, in the order of `DataConfig.views`; left out, two or more of
        role both. `model.compile` is left to the caller. Raises ConfigError.
        """
        super().__init__()
        model, self.loss = model or ModelConfig(), loss or LossConfig()
        if roles:
            # The target's views are taken to be the first ones, as a configuration's are.
            validated(DataConfig, {"views": [{"role": role} for role in roles]}, where="roles")
        term_weights(self.loss, alpha=1.0, beta=1.0)  # refuses unknown terms before the first step
        self.backbone = build_backbone(model) if backbone is None else backbone
        hidden, out = model.projector_hidden, model.projector_out
        layers = model.projector_layers
        self.projector = MLPHead(self.backbone.out_channels, hidden, out, layers=layers)
        self._roles = tuple(roles)
        self.predictor = MLPHead(out, model.predictor_hidden, out)
        self.online_predictor: MLPHead | None = None
        """Of the views that the target does not see, if not `predictor`."""
        if model.predictor_per == "role" and "online" in roles:
            self.online_predictor = MLPHead(out, model.predictor_hidden, out)
        self.region_projector: MLPHead | None = None
        """Of regions that are pooled from an earlier map than the last, if not `projector`."""
        self.region_predictor: MLPHead | None = None
        if self.loss.level != LAST_LEVEL:
            channels = self.backbone.channels(self.loss.level)
            self.region_projector = MLPHead(channels, hidden, out, layers=layers)
            self.region_predictor = MLPHead(out, model.predictor_hidden, out)
        self.watched = True
        """Whether `forward` measures spreads; an engine asks for them at the steps it logs."""
        target = Target(self.backbone, self.projector, self.region_projector)
        # In a tuple and past nn.Module's own __setattr__, which would register it.
        object.__setattr__(self, "_target", (target,))
        convert_sync_bn(self, model.sync_bn)

    @property
    def target(self) -> Target:
        """The target network."""
        (target,) = self.__dict__["_target"]
        assert isinstance(target, Target)
        return target

    def feature_size(self, size_px: int) -> int:
        """Return the side of the map of cells that `forward` expects for views of size_px."""
        return self.backbone.feature_size(size_px, level=self.loss.level)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HARL:
        self.target._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(
        self, views: Sequence[Tensor], cells: Sequence[Tensor], *, alpha: float, beta: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the figures to log.

        views: two or more (B, C, S, S) batches; their S may differ. cells: of each view (B, h, w),
        the foreground coverage in [0, 1] of each cell of its map (`feature_size`). alpha, beta: see
        `loss.term_weights`; a term of weight zero is not computed. Views are matched in pairs, see
        `loss.view_pairs`; a row counts in a region's term of a pair if the region has area in both.
        Returns the 0-d float32 loss and detached 0-d tensors: "loss/<term>" of each of its terms
        (`loss.total_loss`), "fg" (mean coverage, each view counting alike) and "empty" (share of
        pairs' rows without a usable foreground). If ``watched``, also spreads over the first term's
        region, 1 when even over the sphere and 0 when collapsed: "z_std" of the target's
        projections, "p_std" of the predictions and "h_std" of the pooled online features (never
        negative, so well below 1 at best); and of the first and the last "z_rank" and "h_rank", see
        `effective_rank`.
        """
        roles = self._roles or ("both",) * len(views)
        if len(views) != len(roles) or (both := roles.count("both")) < 2:
            raise ValueError(f"{len(views)} views for roles {', '.join(roles)}: give two or more")
        if len(cells) != len(views):
            raise ValueError(f"cells of {len(cells)} views for {len(views)} views: give one each")
        weights = term_weights(self.loss, alpha=alpha, beta=beta)
        # First what is pooled from the last map: those regions are the projector's.
        order = sorted(weights, key=lambda term: LOSS_TERMS[term].region is not None)
        weights = {term: weights[term] for term in order if weights[term]}
        fg = [
            cell_weight(grid, mode=self.loss.mask, threshold=self.loss.mask_threshold)
            for grid in cells
        ]
        cut = [LOSS_TERMS[term].region for term in weights]
        regions = [None if region is None else [region(grid) for grid in fg] for region in cut]

        shared = len(cut) if self.region_projector is None else cut.count(None)
        with torch.no_grad():  # first, so that no online activation is alive beside the target's
            rows, _ = self._pooled(self.target.backbone, views[:both], regions)
            z = self._projected(self.target, rows, shared)
        rows, usable = self._pooled(self.backbone, views, regions)
        h = rows[0]
        q = self._projected(self, rows, shared)
        p = self._predicted(q, both=both, shared=shared)

        loss, terms = total_loss(p, z, q, usable=usable, weights=weights, loss=self.loss)
        logs = {f"loss/{term}": value.detach() for term, value in terms.items()}
        if self.watched:
            watched = {"z": z[:, 0], "p": p[:, 0], "h": h}
            watched = {name: rows.detach().flatten(0, 1) for name, rows in watched.items()}
            logs |= {f"{name}_std": _spread(rows) for name, rows in watched.items()}
            logs |= {f"{name}_rank": effective_rank(watched[name]) for name in ("z", "h")}
        logs["fg"] = torch.stack([grid.detach().mean() for grid in cells]).mean()
        area = [has_area(grid, min_area=self.loss.min_area) for grid in fg]
        counts = torch.stack([area[i] & area[j] for i, j in view_pairs(len(views), both)])
        logs["empty"] = 1.0 - counts.float().mean()
        return loss, logs

    def _predicted(self, q: Tensor, *, both: int, shared: int) -> Tensor:
        """Return predictions of (V, R, B, D) projections, as `_projected` gives them.

        both: how many of the views the target sees; they are the first. shared: of the regions,
        those that are pooled from the last map.
        """
        parts = []
        if shared and self.online_predictor is None:
            parts.append(_grouped(self.predictor, q[:, :shared]))
        elif shared and self.online_predictor is not None:
            seen, unseen = q[:, :shared].tensor_split([both])
            rows = [_grouped(self.predictor, seen), _grouped(self.online_predictor, unseen)]
            parts.append(torch.cat(rows))
        if self.region_predictor is not None and shared < q.shape[1]:
            parts.append(_grouped(self.region_predictor, q[:, shared:]))
        return torch.cat(parts, dim=1)

    def _pooled(
        self,
        backbone: nn.Module,
        views: Sequence[Tensor],
        regions: Sequence[Sequence[Tensor] | None],
    ) -> tuple[list[Tensor], Tensor]:
        """Return the regions' rows, R of (V, B, C), and usable (V, R, B)."""
        rows, usable = [], []
        level = self.loss.level
        # A pass per view, be they of one size: each is normalised by its own statistics.
        for number, view in enumerate(views):
            if level == LAST_LEVEL:
                last = earlier = backbone(view)
            else:
                earlier, last = backbone(view, level)
            for region in regions:
                if region is None:
                    rows.append(global_mean(last))
                    usable.append(torch.ones_like(rows[-1][:, 0], dtype=torch.bool))
                    continue
                weight = region[number]
                if weight.shape[1:] != earlier.shape[2:]:
                    raise ValueError(
                        f"masks of {tuple(weight.shape[1:])} cells meet a feature map of "
                        f"{tuple(earlier.shape[2:])}; ask the loader for `feature_size` cells"
                    )
                mean, enough = masked_mean(earlier, weight, min_area=self.loss.min_area)
                rows.append(mean)
                usable.append(enough)
        count = len(regions)
        by_region = [torch.stack(rows[i::count]) for i in range(count)]
        return by_region, torch.stack(usable).unflatten(0, (len(views), count))

    def _projected(self, network: HARL | Target, rows: list[Tensor], shared: int) -> Tensor:
        """Return (V, R, B, D) projections of R times (V, B, C) rows; ``shared`` as `_predicted`."""
        parts = []
        for head, some in (
            (network.projector, rows[:shared]),
            (network.region_projector, rows[shared:]),
        ):
            if head is not None and some:
                parts.append(_grouped(head, torch.stack(some, dim=1)))
        return torch.cat(parts, dim=1)


def convert_sync_bn(model: HARL, mode: str) -> None:
    """Make BatchNorm layers of both networks share statistics over ranks, in place.

    mode: none; heads; all (the backbone too). `HARL` does so as section ``model`` says. Raises
    ConfigError.
    """
    if mode == "none":
        return
    if mode not in ("heads", "all"):
        raise ConfigError(f"sync_bn '{mode}' is none of none, heads, all")
    for layer in (*model.modules(), *model.target.modules()):
        if isinstance(layer, GroupedBatchNorm1d):
            layer.synced = True
    if mode == "all":
        model.backbone.sync_bn()
        model.target.backbone.sync_bn()


def _grouped(head: MLPHead, rows: Tensor) -> Tensor:
    """Return what a head makes of (V, R, B, C) rows, those of each view and region by itself."""
    out: Tensor = head(rows.flatten(0, 2), groups=rows.shape[0] * rows.shape[1])
    return out.view(*rows.shape[:3], -1)


def effective_rank(rows: Tensor) -> Tensor:
    """Return how many dimensions (N, D) rows use about their mean, 0-d, from 1 to min(N - 1, D).

    The exponential of the entropy of their normalised singular values (Roy and Vetterli, The
    effective rank, EUSIPCO 2007). What is not finite counts as 0.
    """
    with without_autocast(rows):
        rows = widened(rows).nan_to_num(0.0, 0.0, 0.0)
        # The result is that of rows at any scale, and products of very large ones are infinite.
        rows = rows / rows.abs().max().clamp(min=torch.finfo(rows.dtype).tiny)
        rows = rows - rows.mean(0)
        gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
        singular = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
        share = singular / singular.sum().clamp(min=1e-12)
        rank: Tensor = torch.special.entr(share).sum().exp()
        return rank


def _spread(z: Tensor) -> Tensor:
    """Return the mean over D of the deviation of unit-length rows (N, D), times sqrt(D)."""
    with without_autocast(z):
        unit = functional.normalize(widened(z), dim=1, eps=1e-6)
        return unit.std(0).mean() * math.sqrt(unit.shape[1])
