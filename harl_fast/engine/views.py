"""How the loader must cut the views that a configuration describes."""

from __future__ import annotations

from harl_fast.config import RunConfig
from harl_fast.data.geometry import ViewGeometry
from harl_fast.model.backbone import feature_size


def view_geometry(config: RunConfig) -> list[ViewGeometry]:
    """Return one geometry a view; its cells are those of the encoder's last feature map."""
    model = config.model
    return [
        ViewGeometry(
            size_px=view.size_px,
            cells=feature_size(
                model.arch, stem=model.stem, last_stride=model.last_stride, size_px=view.size_px
            ),
            scale=view.scale,
            ratio=view.ratio,
            flip_p=view.flip_p,
            vflip_p=view.vflip_p,
            crop=view.crop,
        )
        for view in config.data.views
    ]
