"""All views from one stored picture: stores against each other, colours against the device path."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from harl_fast.config import ViewConfig
from harl_fast.data.loader import BetonLoader
from harl_fast.data.views.color_device import Colouring, Photometric
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.errors import ConfigError
from preprocess import beton as converter
from tests.betons import smooth_noise
from tests.data import support

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POLICIES = (
    ViewConfig(size_px=48, blur_sigma=(1.0, 8.0)),
    ViewConfig(size_px=48, blur_p=0.1, solarize_p=0.2),
)
VIEWS = [ViewGeometry(size_px=48, cells=6)] * 2
COUNT = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for split in ("train", "val"):
        for index in range(COUNT):
            place = folder / split / f"class{index % 2}"
            place.mkdir(parents=True, exist_ok=True)
            picture = cv2.GaussianBlur(smooth_noise(index, 131, 165 + index), (0, 0), 2.0)
            cv2.imwrite(str(place / f"{index}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return folder


@pytest.fixture(scope="module")
def stores(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for store in ("jpg", "passthrough", "raw", "yuv420", "mix:0.5"):
        out = tmp_path_factory.mktemp("store")
        arguments = ["--data", str(photos), "--out", str(out), "--store", store]
        assert converter.main([*arguments, "--mask-method", "center", "--workers", "1"]) == 0
        found[store] = out / "train.beton"
    return found


def loader(path: Path, **changes) -> BetonLoader:
    return support.loader(path, **{"views": VIEWS, **changes})


def views_of(path: Path, **changes) -> dict[int, list[np.ndarray]]:
    found = {}
    for batch in loader(path, **changes):
        for row, sample in enumerate(batch.ids.tolist()):
            found[sample] = [view[row].numpy().copy() for view in batch.views]
    return found


def test_every_store_shows_the_same_pictures(stores: dict[str, Path]) -> None:
    reference = views_of(stores["raw"])
    assert len(reference) == COUNT
    # Raw is exact; the others lose chroma resolution, jpg some quality a second time.
    for store, allowed in (("passthrough", 1.0), ("yuv420", 1.5), ("jpg", 2.5), ("mix:0.5", 2.5)):
        for sample, views in views_of(stores[store]).items():
            for view, expected in zip(views, reference[sample], strict=True):
                difference = np.abs(view.astype(int) - expected)
                assert difference.mean() <= allowed, (store, sample, difference.mean())
                assert view.std() > 5


def test_many_views_of_mixed_sizes_come_from_one_decode(stores: dict[str, Path]) -> None:
    """Views of a multi-crop are those that each would be alone at its place."""
    mixed = [ViewGeometry(size_px=s, cells=c) for s, c in ((40, 5), (40, 5), (24, 3), (17, 2))]
    for store in ("jpg", "raw"):
        batch = next(iter(loader(stores[store], views=mixed)))
        assert [tuple(v.shape[1:]) for v in batch.views] == [
            (s.size_px, s.size_px, 3) for s in mixed
        ]
        assert [tuple(c.shape[1:]) for c in batch.cells] == [(s.cells, s.cells) for s in mixed]
        pair = next(iter(loader(stores[store], views=mixed[:2])))
        for both in (0, 1):
            assert torch.equal(batch.views[both], pair.views[both])
            assert torch.equal(batch.cells[both], pair.cells[both])


def test_many_views_are_the_same_on_any_number_of_ranks_and_after_resuming(
    stores: dict[str, Path],
) -> None:
    sizes = ((40, 5), (40, 5), (24, 3), (24, 3))
    mixed = [ViewGeometry(size_px=s, cells=c) for s, c in sizes]
    whole = support.by_sample(loader(stores["jpg"], views=mixed, workers=1))
    ranks = [
        loader(stores["jpg"], views=mixed, batch_micro=3, rank=rank, world=2) for rank in (0, 1)
    ]
    assert support.by_sample(ranks[0]) | support.by_sample(ranks[1]) == whole
    first = loader(stores["jpg"], views=mixed)
    begun = support.by_sample([next(iter(first))])
    rest = loader(stores["jpg"], views=mixed)
    rest.load_state_dict({**first.state_dict(), "step": 1})
    assert begun | support.by_sample(rest) == whole and len(begun) == 12
    each = sum(3 * view.size_px**2 + 4 * view.cells**2 for view in mixed) + 4  # and the status
    assert rest._reading.buffers.bytes_needed == (3 + 1) * 12 * each
    # Two small views of the same sample are cut apart, and in another epoch anew.
    one = next(iter(rest))
    assert not torch.equal(one.views[2], one.views[3])
    assert not set(support.by_sample([one]).values()) & set(whole.values())


@pytest.mark.parametrize("store", ["jpg", "raw"])
def test_the_loader_colours_as_the_device_path_does(stores: dict[str, Path], store: str) -> None:
    plain = loader(stores[store])
    colour = Colouring(POLICIES, mean=MEAN, std=STD)
    photometric = Photometric(POLICIES, mean=MEAN, std=STD, seed=3)
    for ours, raw in zip(loader(stores[store], colour=colour), plain, strict=True):
        assert torch.equal(ours.ids, raw.ids)
        for view in (0, 1):
            expected = photometric(raw.views[view], view=view, ids=raw.ids.numpy(), epoch=0)
            assert ours.views[view].shape == expected.shape
            assert ours.views[view].is_contiguous(memory_format=torch.channels_last)
            # The blur is rounded to 16 bits and drops taps of no weight: 1e-3 of a pixel's range.
            torch.testing.assert_close(ours.views[view], expected, rtol=0, atol=1e-3 / min(STD))


def test_colours_for_other_sizes_are_refused(stores: dict[str, Path]) -> None:
    colour = Colouring((POLICIES[0],), mean=MEAN, std=STD)
    with pytest.raises(ConfigError, match="48"):
        loader(stores["jpg"], colour=colour)
