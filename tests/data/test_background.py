"""Background replacement: what lies where, whose picture it is, and what it depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from harl_fast.config import ViewConfig
from harl_fast.data import buffers
from harl_fast.data.decode import FEWEST, bank_samples
from harl_fast.data.loader import Batch
from harl_fast.data.views.background import LEAST_FOREGROUND, bank_seed, bank_view
from harl_fast.data.views.color_device import Colouring
from harl_fast.errors import ConfigError, DataError
from harl_fast.rng import BACKGROUND, uniforms
from tests.betons import Item, plain_item, write_beton
from tests.data.support import COUNT, VIEWS, by_sample, damage, loader

SEED, EPOCH = 3, 5
PLACES = ((0, 20, 0, 20), (16, 48, 16, 48), (0, 64, 30, 64), (0, 0, 0, 0), (2, 62, 2, 62))
"""Rows and columns of the masks' foreground, in turn."""
IDS = list(range(COUNT))
BEHIND = [bank_view(view) for view in VIEWS]


def item(index: int) -> Item:
    picture, _, label = plain_item(index)
    mask = np.zeros((64, 64), np.bool_)
    top, bottom, left, right = PLACES[index % len(PLACES)]
    mask[top:bottom, left:right] = True
    return picture, mask, label


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beton(tmp_path_factory.mktemp("plain") / "train.beton", item, count=COUNT)


def views(probability: float, **changes: object) -> list:
    return [replace(view, background_p=probability, **changes) for view in VIEWS]


def shown(path: Path, *, ids: list[int] = IDS, epoch: int = EPOCH, **changes) -> Batch:
    """Return one batch of given samples, copied out of the loader's memory."""
    one = loader(path, **{"batch_global": len(ids), "batch_micro": len(ids), **changes})
    (batch,) = one.shown(ids, epoch=epoch)
    copied = Batch(*(tuple(t.clone() for t in part) for part in batch[:2]), *batch[2:])
    one.close()
    return copied


def cover_of(path: Path, *, view: int, channels: int) -> npt.NDArray[np.float64]:
    """Return (N, S, S) shares of foreground in a view's pixels: the loader's cells, as fine."""
    fine = [replace(v, cells=v.size_px) for v in VIEWS]
    return shown(path, views=fine, channels=channels).cells[view].numpy().astype(np.float64)


def softened(cover: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    for axis in (1, 2):
        edges = [(1, 1) if each == axis else (0, 0) for each in range(3)]
        wide = np.moveaxis(np.pad(cover, edges, mode="edge"), axis, 0)
        cover = np.moveaxis(wide[:-2] / 4 + wide[1:-1] / 2 + wide[2:] / 4, 0, axis)
    return cover


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_what_the_mask_leaves_out_is_a_view_of_the_bank(
    beton: Path, channels: int, probability: float
) -> None:
    own = shown(beton, views=VIEWS, channels=channels)
    found = shown(beton, views=views(probability), channels=channels)
    bank = bank_samples(COUNT, seed=SEED, epoch=EPOCH)
    behind = shown(
        beton,
        ids=bank.tolist(),
        views=BEHIND,
        seed=bank_seed(SEED, epoch=EPOCH),
        channels=channels,
    )
    replaced = 0
    for view in range(len(VIEWS)):
        draws = uniforms(SEED, EPOCH, IDS, view=view + 2, purpose=BACKGROUND, count=2)
        cover = cover_of(beton, view=view, channels=channels)
        chosen = (draws[:, 0] < probability) & (cover.mean((1, 2)) >= LEAST_FOREGROUND)
        share = softened(cover)[..., None]
        other = behind.views[view].numpy()[(draws[:, 1] * len(bank)).astype(int)]
        mine = own.views[view].numpy()
        mixed = share * mine + (1.0 - share) * other
        expected = np.where(chosen[:, None, None, None], mixed, mine)
        # A share in 255ths is off by half of one, times at most 255 levels, and two roundings.
        assert np.abs(found.views[view].numpy() - expected).max() <= 1.01
        assert np.array_equal(own.cells[view].numpy(), found.cells[view].numpy())
        replaced += int(chosen.sum())
        whole = chosen & (cover.min((1, 2)) == 1.0)
        assert np.array_equal(found.views[view].numpy()[whole | ~chosen], mine[whole | ~chosen])
    assert replaced > 10
    if probability < 1.0:
        assert replaced < 2 * COUNT - 20


def test_a_view_that_has_hardly_any_foreground_keeps_its_background(beton: Path) -> None:
    batch, plain = shown(beton, views=views(1.0)), shown(beton, views=VIEWS)
    for view in range(len(VIEWS)):
        bare = cover_of(beton, view=view, channels=3).mean((1, 2)) < LEAST_FOREGROUND
        assert bare.any(), "the container has such views"
        assert np.array_equal(batch.views[view].numpy()[bare], plain.views[view].numpy()[bare])


def test_pixels_do_not_depend_on_batch_ranks_workers_or_where_a_pass_begins(beton: Path) -> None:
    def epoch(**changes: object) -> dict[int, tuple[bytes, ...]]:
        one = loader(beton, views=views(0.5), **changes)
        one.load_state_dict({**one.state_dict(), "epoch": EPOCH})
        found = by_sample(one)
        one.close()
        return found

    whole = epoch()
    parts: dict[int, tuple[bytes, ...]] = {}
    for rank in range(2):
        parts |= epoch(rank=rank, world=2, batch_micro=3, workers=1)
    assert parts == whole and len(whole) == COUNT
    one = loader(beton, views=views(0.5))
    one.load_state_dict({**one.state_dict(), "epoch": EPOCH, "step": 3})
    rest = by_sample(one)
    assert rest == {sample: whole[sample] for sample in rest} and len(rest) == COUNT - 36
    again = by_sample(one)  # the next epoch, by the same loader: another bank
    assert set(bank_samples(COUNT, seed=SEED, epoch=EPOCH)) != set(
        bank_samples(COUNT, seed=SEED, epoch=EPOCH + 1)
    )
    assert all(again[sample] != whole[sample] for sample in again)


def test_the_loader_colours_what_was_replaced(beton: Path) -> None:
    still = {"jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0, "solarize_p": 0.0}
    policies = tuple(ViewConfig(size_px=view.size_px, **still) for view in VIEWS)
    colour = Colouring(policies, mean=(0.5,) * 3, std=(0.25,) * 3)
    plain = shown(beton, views=views(1.0))
    coloured = shown(beton, views=views(1.0), colour=colour)
    for levels, values in zip(plain.views, coloured.views, strict=True):
        expected = (levels.numpy().astype(np.float64) / 255.0 - 0.5) / 0.25
        got = values.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_damaged_picture_is_left_out_of_the_bank(beton: Path, tmp_path: Path) -> None:
    bank = bank_samples(COUNT, seed=SEED, epoch=EPOCH)
    assert len(bank) == FEWEST < COUNT
    sound = next(sample for sample in IDS if sample not in bank)
    path = damage(beton, tmp_path, *bank.tolist()[1:])
    batch = shown(path, ids=[sound], views=views(1.0), check="none")
    behind = shown(beton, ids=bank.tolist()[:1], views=BEHIND, seed=bank_seed(SEED, epoch=EPOCH))
    own = shown(beton, ids=[sound], views=VIEWS)
    for view in range(len(VIEWS)):
        share = softened(cover_of(beton, view=view, channels=3))[sound][..., None]
        expected = share * own.views[view].numpy()[0] + (1 - share) * behind.views[view].numpy()[0]
        assert np.abs(batch.views[view].numpy()[0] - expected).max() <= 1.01


def test_a_bank_without_a_sound_picture_is_an_error(beton: Path, tmp_path: Path) -> None:
    path = damage(beton, tmp_path, *bank_samples(COUNT, seed=SEED, epoch=EPOCH).tolist())
    with pytest.raises(DataError, match=r"none of 32 samples can be decoded for backgrounds"):
        shown(path, views=views(1.0), check="none")


def test_a_loader_of_some_samples_shows_nothing_of_others(beton: Path, tmp_path: Path) -> None:
    chosen = [4, 7, 11, 20, 31]
    others = damage(beton, tmp_path, *(sample for sample in IDS if sample not in chosen))
    options = {"ids": chosen, "batch_global": 5, "batch_micro": 5, "views": views(1.0)}
    found = [by_sample(loader(path, **options)) for path in (beton, others)]
    assert found[0] == found[1] and sorted(found[0]) == chosen


def test_backgrounds_count_as_memory(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = loader(beton, views=VIEWS)._reading.buffers.bytes_needed
    need += sum(FEWEST * view.size_px**2 * 3 for view in VIEWS)
    monkeypatch.setattr(buffers, "available_bytes", lambda: need)
    loader(beton, views=views(1.0)).close()
    monkeypatch.setattr(buffers, "available_bytes", lambda: need - 1)
    with pytest.raises(ConfigError, match=r"bytes of backgrounds take .* or smaller views"):
        loader(beton, views=views(1.0))


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_probabilities_outside_0_to_1_are_refused(probability: float) -> None:
    with pytest.raises(ConfigError, match="background_p"):
        views(probability)


def test_replaced_backgrounds_follow_the_mask_to_the_pixel(beton: Path) -> None:
    """An object's middle shows the object, and what is far from it another picture."""
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip_p": 0.0}
    own, found = (shown(beton, views=views(p, **whole)) for p in (0.0, 1.0))
    fine = shown(beton, views=[replace(v, cells=v.size_px, **whole) for v in VIEWS])
    for view in range(len(VIEWS)):
        cover = softened(fine.cells[view].numpy().astype(np.float64))
        mine, other = own.views[view].numpy(), found.views[view].numpy()
        inside, outside = cover == 1.0, cover == 0.0
        assert inside.any() and outside.any()
        assert np.array_equal(mine[inside], other[inside])
        assert (mine[outside] != other[outside]).mean() > 0.5
