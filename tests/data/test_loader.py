"""The real loader on real JPEGs: alignment of image and mask, reproducibility, resuming."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harl_fast.data.container.manifest import manifest_path, names_path
from harl_fast.data.loader import Batch, EvalLoader, decoding_threads
from harl_fast.data.order import VERSIONS, Kind
from harl_fast.data.reader import read_samples
from harl_fast.data.views.batch import decode_batch
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.errors import ConfigError, DataError
from tests.betons import plain_item, write_beton
from tests.data.support import COUNT, by_sample, loader
from tests.sets import split_beton


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beton(tmp_path_factory.mktemp("plain") / "train.beton", plain_item, count=COUNT)


def blocks_item(index: int):
    """Return a picture of 8 px black and white blocks, stored without loss, and its own mask."""
    bits = np.random.default_rng(index).random((16, 16)) < 0.5
    picture = np.kron(bits, np.ones((8, 8)))[..., None].repeat(3, axis=2) * 255
    return picture.astype(np.uint8), bits, index % 2


@pytest.mark.parametrize("cells", [96, 12])
def test_a_mask_made_from_the_image_stays_equal_to_it(tmp_path: Path, cells: int) -> None:
    """Boxes of exactly the view's size need no resizing, so the comparison is bit for bit."""
    path = write_beton(tmp_path / "train.beton", blocks_item, count=24, mask_size=16, quality=100)
    share = (96 / 128) ** 2
    geometry = {"scale": (share, share), "ratio": (1.0, 1.0), "flip_p": 0.5, "vflip_p": 0.5}
    views = [ViewGeometry(size_px=96, cells=cells, **geometry) for _ in range(2)]
    found = 0
    for batch in loader(path, views=views):
        for pixels, grid in zip(batch.views, batch.cells, strict=True):
            white = (pixels > 127).numpy()
            assert (white[..., :1] == white).all()
            side = 96 // cells
            blocks = white[..., 0].reshape(-1, cells, side, cells, side)
            expected = blocks.mean((2, 4), dtype=np.float64).astype(np.float32)
            assert np.array_equal(grid.numpy(), expected)
            assert 0.2 < expected.mean() < 0.8
            found += len(expected)
    assert found == 48


def test_pixels_do_not_depend_on_threads_batch_or_ranks(beton: Path) -> None:
    reference = by_sample(loader(beton))
    assert by_sample(loader(beton, workers=1)) == reference
    assert by_sample(loader(beton, batch_micro=4)) == reference
    ranks = {}
    for rank in range(2):
        ranks |= by_sample(loader(beton, batch_micro=3, rank=rank, world=2))
    assert ranks == reference


THREADS = """
import sys
from pathlib import Path
from harl_fast.config import ViewConfig
from harl_fast.data.loader import decoding_threads
from harl_fast.data.views.color_device import Colouring
from tests.data.support import VIEWS, by_sample, loader

policies = tuple(ViewConfig(size_px=view.size_px, solarize_p=0.2) for view in VIEWS)
for colour in (None, Colouring(policies, (0.5,) * 3, (0.2,) * 3)):
    one, eight = (loader(Path(sys.argv[1]), workers=n, colour=colour) for n in (1, 8))
    assert (one._settings["threads"], eight._settings["threads"]) == (1, 8)
    print(by_sample(one) == by_sample(eight))
"""


def test_eight_threads_show_what_one_shows(beton: Path) -> None:
    """In a process of its own: numba's limit is set at its start, on small machines below eight."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(beton)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"NUMBA_NUM_THREADS": "8"},
        capture_output=True,
        text=True,
        timeout=1700,  # it may have to compile, beside other programs
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


STORED = """
import sys
from pathlib import Path
from harl_fast.data.views.batch import decode_batch
from tests.data.support import loader

next(iter(loader(Path(sys.argv[1]))))
stats = decode_batch.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_a_second_process_finds_the_kernel_and_its_records_in_the_store(beton: Path) -> None:
    """Its arguments are named tuples and arrays of records, which must look alike in all."""
    next(iter(loader(beton)))
    done = subprocess.run(
        [sys.executable, "-c", STORED, str(beton)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.split() == ["1", "0"], done.stderr


def test_the_epoch_changes_the_views_without_compiling_again(beton: Path) -> None:
    one = loader(beton)
    first = by_sample(one)
    compiled = len(decode_batch.signatures)
    second = by_sample(one)
    assert len(decode_batch.signatures) == compiled > 0
    same = [sample for sample in first if first[sample] == second.get(sample)]
    assert same == []
    units = {"order": "random", "order_version": 2, "samples": COUNT, "batch_global": 12}
    assert one.state_dict() == {"seed": 3, "epoch": 2, "step": 0, **units}


@pytest.mark.parametrize("shards", [1, 7])
def test_golden_pixels(beton: Path, tmp_path: Path, shards: int) -> None:
    """Pins geometry, resize and cells; libjpeg-turbo's decode is exact across its versions here."""
    found = by_sample(loader(split_beton(beton, tmp_path, shards=shards) if shards > 1 else beton))
    parts = [part for sample in sorted(found) for part in found[sample][:-1]]  # without the labels
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    assert digest == GOLDEN


@pytest.mark.parametrize("named", [{"order_version": 2}, {"order_version": 1}, {}])
@pytest.mark.parametrize("order", ["random", "quasi"])
def test_resuming_gives_the_rest_of_the_run(
    beton: Path, named: dict[str, int], order: Kind
) -> None:
    """In the order that the position was saved under: 1 where none is named."""
    begun = {"seed": 3, "epoch": 0, "step": 0, **named}
    version = named.get("order_version", 1)
    whole = loader(beton, order=order)
    whole.load_state_dict(begun)
    reference = [batch.ids.tolist() for _ in range(2) for batch in whole]
    newest = loader(beton, order=order).order
    expected = replace(newest, version=version, chunk=whole.order.chunk)
    epochs = [expected.rank_samples(epoch)[:].reshape(-1, 12).tolist() for epoch in (0, 1)]
    assert reference == epochs[0] + epochs[1]
    first = loader(beton, order=order)
    first.load_state_dict(begun)
    taken = []
    for batch in first:
        taken.append(batch.ids.tolist())
        if len(taken) == 2:
            break
    # The position counts whole steps that were handed on: the last one is still in our hands.
    state = first.state_dict()
    assert state["step"] == 1 and state["order_version"] == version
    second = loader(beton, order=order)
    second.load_state_dict({**state, "step": 2})
    rest = [batch.ids.tolist() for _ in range(2) for batch in second]
    assert taken + rest == reference


def test_a_new_run_has_the_newest_order_and_the_position_of_another_seed_is_refused(
    beton: Path,
) -> None:
    one = loader(beton, seed=3)
    assert one.state_dict()["order_version"] == one.order.version == VERSIONS[-1]
    with pytest.raises(ConfigError, match="seed 4"):
        one.load_state_dict({"seed": 4, "epoch": 0, "step": 0})


def test_chosen_samples_are_evaluated_in_the_order_given(beton: Path) -> None:
    whole = {
        int(sample): view.tolist()
        for batch in EvalLoader(beton, size_px=32, batch=16)
        for sample, view in zip(batch.ids, batch.views[0], strict=True)
    }
    some = EvalLoader(beton, size_px=32, batch=2, ids=[5, 1, 30])
    found = [
        (int(sample), view.tolist())
        for batch in some
        for sample, view in zip(batch.ids, batch.views[0], strict=True)
    ]
    assert len(some) == 3 and found == [(sample, whole[sample]) for sample in (5, 1, 30)]


@pytest.mark.parametrize("ids", [[0, 2**40], [-1]])
def test_a_sample_that_is_not_there_is_refused(beton: Path, ids: list[int]) -> None:
    with pytest.raises(DataError, match=rf"has no sample {ids[-1]}: its ids are 0 to"):
        EvalLoader(beton, size_px=32, ids=ids)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"batch": 2.5}, {"size_px": 32.0}, {"cells": 1.0}])
def test_sizes_that_are_no_whole_numbers_are_named(beton: Path, sizes: dict[str, Any]) -> None:
    ((name, value),) = sizes.items()
    with pytest.raises(ConfigError, match=rf"^{name} {value}: give a whole number from 1 on"):
        EvalLoader(beton, **{"size_px": 32, **sizes})


def test_views_show_the_box_that_the_geometry_names(beton: Path) -> None:
    """The evaluation view against Pillow-like reference arithmetic on the stored picture."""
    from torchvision.transforms.v2 import functional

    for batch in EvalLoader(beton, size_px=40, batch=16, centre=0.875):
        for sample, pixels in zip(
            read_samples(beton, batch.ids.tolist()), batch.views[0], strict=True
        ):
            side = round(0.875 * min(sample.image.shape[:2]))
            x = torch.from_numpy(sample.image).permute(2, 0, 1).float()
            height, width = x.shape[1:]
            top, left = (height - side) // 2, (width - side) // 2
            x = functional.resize(
                x[:, top : top + side, left : left + side], [40, 40], antialias=True
            )
            # libjpeg rounds its chroma and RGB before this resize, ours are not rounded in between.
            difference = (x.permute(1, 2, 0) - pixels).abs()
            assert difference.mean() <= 0.5 and difference.max() <= 3.0


def test_a_central_square_of_no_size_is_refused(beton: Path) -> None:
    """Of a view it would mean crops at random."""
    with pytest.raises(ConfigError, match="centre 0: give a share of the shorter side, above 0"):
        EvalLoader(beton, size_px=40, centre=0.0)


def test_evaluation_sees_every_sample_once_in_order(beton: Path) -> None:
    batches = [Batch(*batch) for batch in EvalLoader(beton, size_px=32, batch=16)]
    ids = torch.cat([batch.ids for batch in batches])
    assert ids.tolist() == list(range(COUNT))
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.tolist() == [index % 4 for index in range(COUNT)]


def test_torchs_thread_count_is_left_alone(beton: Path) -> None:
    before = torch.get_num_threads()
    next(iter(loader(beton, workers=1)))
    assert torch.get_num_threads() == before


def test_threads_are_divided_among_ranks_and_capped() -> None:
    assert decoding_threads(10**6) == decoding_threads(0)
    assert decoding_threads(0, ranks_here=10**6) == 1
    assert decoding_threads(1) == 1


GOLDEN = "473b57837ad6939ca56546822be425c468fe910b86eef14a5bba52883f82d7a6"


def test_samples_are_chosen_by_whole_numbers_alone(beton: Path) -> None:
    chosen = np.arange(COUNT) < 3
    for choose in (loader(beton).shown, lambda ids: EvalLoader(beton, size_px=32, ids=ids)):
        for ids in (chosen, [0.0, 1.0], {1, 2}, 1):
            with pytest.raises(ConfigError, match="give a list of whole numbers"):
                choose(ids)
        batches = choose(torch.from_numpy(np.flatnonzero(chosen)))
        assert [batch.ids.tolist() for batch in batches] == [[0, 1, 2]]


@pytest.mark.parametrize("state", [{}, {"loader": {"seed": 3}}, {"seed": 3, "epoch": 0}, None, 7])
def test_what_is_no_position_is_refused(beton: Path, state: Any) -> None:
    one = loader(beton)
    with pytest.raises(ConfigError, match=r"is no position: give what state_dict\(\) returned"):
        one.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"step 1\.5: give a whole number from 0 to"):
        one.load_state_dict({**one.state_dict(), "step": 1.5})


def test_paths_that_hold_no_container_are_refused(beton: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder.*train\.beton"):
        loader(beton.parent)
    for path in (tmp_path / "train.beton", beton / "train.beton"):  # a file is no folder
        with pytest.raises(DataError, match=f"{path} does not exist: give a container"):
            loader(path)
    path = tmp_path / "train.beton"
    for place in (lambda p: p, manifest_path, names_path):
        shutil.copy(place(beton), place(path))
    path.write_bytes(beton.read_bytes()[:-3000])
    with pytest.raises(DataError, match="cut short"):
        loader(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="is a folder"):
        loader(path)
