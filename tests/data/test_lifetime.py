"""A loader's threads, memory and position: bounded, given back, refused where they cannot be."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from ffcv.pipeline.compiler import Compiler

from harl_fast import host
from harl_fast.data import buffers
from harl_fast.data.container.manifest import manifest_path, names_path
from harl_fast.data.loader import BetonLoader, EvalLoader
from harl_fast.data.prefetch import PrefetchThread
from harl_fast.data.reader import OpenContainer
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.errors import ConfigError, DataError
from tests.betons import plain_item, write_beton
from tests.data.support import COUNT, VIEWS, by_sample, loader, until

MB = 1 << 20


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beton(tmp_path_factory.mktemp("plain") / "train.beton", plain_item, count=COUNT)


@pytest.fixture(scope="module")
def shared(beton: Path) -> BetonLoader:
    """A loader whose code is compiled; tests may iterate it but must not count on its position."""
    made = loader(beton)
    list(made)
    return made


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "harl_fast" in thread.name]


def test_fifty_epochs_take_no_more_memory_or_threads(shared: BetonLoader) -> None:
    process = psutil.Process()
    for _ in range(5):
        list(shared)
    gc.collect()
    memory, threads, named = process.memory_info().rss, process.num_threads(), ours()
    for _ in range(50):
        for _batch in shared:
            pass
    del _batch
    gc.collect()
    assert process.memory_info().rss - memory < 2 * MB
    # Numba may start its own helpers late, one per core; a leak would be one per epoch.
    assert process.num_threads() <= threads + (os.cpu_count() or 1)
    assert ours() == named


def all_is_made(one: BetonLoader, *, ahead: int) -> None:
    """Wait until the thread under way has filled so many buffers and holds none it could fill."""
    current = one._reading.thread
    assert current is not None
    until(lambda: current._ready.qsize() >= ahead)
    assert current._free.empty()


def test_batches_ahead_are_made_and_no_more(shared: BetonLoader, monkeypatch) -> None:
    """One batch is out; those ahead of it are ready; nothing is made beyond."""
    begun = []
    run = PrefetchThread.decode

    def counted(self, samples, out):
        begun.append(len(samples))
        return run(self, samples, out)

    monkeypatch.setattr(PrefetchThread, "decode", counted)
    shared.load_state_dict({"seed": 3, "epoch": 0, "step": 0})
    batch = next(batches := iter(shared))
    all_is_made(shared, ahead=3)
    assert len(begun) == 1 + 3
    places = {batch.views[0].data_ptr(), *(batch.views[0].data_ptr() for batch in batches)}
    assert len(begun) == 5 and len(places) == 1 + 3


def test_a_slow_consumer_keeps_its_batch(shared: BetonLoader) -> None:
    shared.load_state_dict({"seed": 3, "epoch": 0, "step": 0})
    batches = iter(shared)
    for _ in range(2):
        batch = next(batches)
        before = batch.views[1].clone()
        all_is_made(shared, ahead=3)
        assert (batch.views[1] == before).all()


def test_leaving_early_stops_the_thread_and_iterating_again_works(shared: BetonLoader) -> None:
    for _ in range(3):
        for _batch in shared:
            break
        assert ours() == []
    shared.load_state_dict({"seed": 3, "epoch": 0, "step": 0})
    assert len(by_sample(shared)) == COUNT


def test_buffers_go_with_close_and_come_back(shared: BetonLoader) -> None:
    next(iter(shared))
    made = shared._reading.buffers
    assert made._made
    shared.close()
    assert not made._made and ours() == []
    assert len(next(iter(shared)).ids) == 12


def test_garbage_collection_ends_thread_and_buffers(beton: Path) -> None:
    one = loader(beton)
    made = one._reading.buffers
    batches = iter(one)
    next(batches)
    assert ours() != [] and made._made
    del one, batches
    gc.collect()
    assert ours() == [] and not made._made


def test_two_loaders_at_once_do_not_disturb_each_other(shared: BetonLoader, beton: Path) -> None:
    other = EvalLoader(beton, size_px=40, batch=12)
    alone = by_sample(other)
    shared.load_state_dict({"seed": 3, "epoch": 0, "step": 0})
    expected = by_sample(shared)
    shared.load_state_dict({"seed": 3, "epoch": 0, "step": 0})
    first, second = {}, {}
    for one, two in zip(shared, other, strict=True):
        first |= by_sample([one])
        second |= by_sample([two])
    assert first == expected and second == alone


def test_loaders_built_and_read_in_threads_at_once_give_what_they_give_alone(beton: Path) -> None:
    def batches(seed: int) -> dict[int, tuple[bytes, ...]]:
        return by_sample(loader(beton, seed=seed, workers=1 + seed % 2))

    alone = [batches(seed) for seed in range(15)]
    threads, graphs = torch.get_num_threads(), Compiler.is_enabled
    begin = threading.Barrier(len(alone))

    def together(seed: int) -> dict[int, tuple[bytes, ...]]:
        begin.wait()
        return batches(seed)

    with ThreadPoolExecutor(len(alone)) as pool:
        assert list(pool.map(together, range(len(alone)))) == alone
    assert (torch.get_num_threads(), Compiler.is_enabled) == (threads, graphs)


def test_no_switch_of_the_process_is_touched(beton: Path, monkeypatch) -> None:
    """Another thread may be using ffcv, numba or torch at that moment."""
    switches = [(Compiler, "set_enabled"), (Compiler, "set_num_threads")]
    for owner, name in (*switches, (torch, "set_num_threads")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("a switch of the whole process"))
    one = loader(beton, workers=1)
    assert len(by_sample(one)) == COUNT
    one.set_views([ViewGeometry(size_px=24, cells=3)] * 2)
    assert len(by_sample(EvalLoader(beton, size_px=32))) == COUNT


IMPORT = """
import sys
import numba, torch
torch.set_num_threads(2)
import harl_fast.data
from ffcv.fields.rgb_image import IMAGE_MODES
LAYERS = ("tbbpool", "omppool", "workqueue")
print(*(f"started {name}" for name in LAYERS if f"numba.np.ufunc.{name}" in sys.modules))
print(torch.get_num_threads(), numba.get_num_threads())
print(type(IMAGE_MODES).__name__, numba.typed.Dict.__module__)
"""


def test_importing_the_data_path_changes_no_thread_count_starts_none_and_compiles_nothing() -> None:
    """ffcv sets both to one when it is imported, and fills a typed dictionary, which compiles.

    Conversion forks its workers of a process that has imported it: with numba's threads in it, that
    process hung at its exit every few times, and with it every pipe that read its output.
    """
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"NUMBA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["2", "2", "dict", "numba.typed.typeddict"], done.stderr


ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from harl_fast import BetonLoader, ViewGeometry
views = [ViewGeometry(size_px=24, cells=3)] * 2
print(sum(len(b.ids) for b in BetonLoader(sys.argv[1], views=views, batch_global=4, batch_micro=4)))
"""


def test_a_process_of_one_core_that_has_read_batches_ends(beton: Path) -> None:
    """numba's TBB pool waited for ever at the exit for what the loader's thread had run on it."""
    done = subprocess.run(
        [sys.executable, "-c", ONE_CORE, beton],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0 and int(done.stdout) > 0, done.stderr


def test_a_second_pass_ends_the_first(shared: BetonLoader) -> None:
    old = iter(shared)
    next(old)
    next(iter(shared))
    with pytest.raises(ConfigError, match="one pass at a time"):
        next(old)


def test_a_forked_child_is_refused(shared: BetonLoader) -> None:
    batches = iter(shared)
    next(batches)
    for use in (lambda: next(iter(shared)), lambda: next(batches)):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                use()
            except ConfigError as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as stream:
            told = stream.read()
        os.waitpid(child, 0)
        assert "fork" in told and "build the loader in the process that uses it" in told
    next(batches)  # the parent's pass goes on


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_loader_cannot_be_pickled_or_copied(shared: BetonLoader, act) -> None:
    with pytest.raises(ConfigError, match="build it in the process that uses it"):
        act(shared)


def test_views_change_between_epochs_only(shared: BetonLoader, beton: Path) -> None:
    one = loader(beton)
    for _batch in one:
        break
    # No step is done, yet a batch of it was handed out.
    smaller = [ViewGeometry(size_px=24, cells=3), ViewGeometry(size_px=16, cells=2)]
    with pytest.raises(ConfigError, match="within an epoch"):
        one.set_views(smaller)
    one.load_state_dict({"seed": 3, "epoch": 4, "step": 0})
    assert one.set_views(smaller) >= 0.0
    got = list(one)[-1]
    assert [v.shape[1:3] for v in got.views] == [(24, 24), (16, 16)]
    assert [c.shape[1:] for c in got.cells] == [(3, 3), (2, 2)]
    fresh = loader(beton, views=smaller)
    fresh.load_state_dict({"seed": 3, "epoch": 5, "step": 0})
    assert by_sample(one) == by_sample(fresh)
    shared.load_state_dict({"seed": 3, "epoch": 0, "step": 0})
    with pytest.raises(ConfigError, match="no views"):
        shared.set_views([])
    assert len(next(iter(shared)).views) == 2 and shared.views == tuple(VIEWS)


def test_other_views_are_not_read_from_another_container(beton: Path, tmp_path: Path) -> None:
    """The views in use go on with the file that was opened, wherever its name leads by now."""
    path = tmp_path / "train.beton"
    for place in (lambda p: p, manifest_path, names_path):
        shutil.copy(place(beton), place(path))
    one = loader(path)
    expected = by_sample(one)
    os.replace(write_beton(tmp_path / "new.beton", plain_item, count=COUNT + 1), path)
    with pytest.raises(DataError, match=r"train\.beton has .* its manifest says"):
        one.set_views([ViewGeometry(size_px=24, cells=3)])
    one.load_state_dict({"seed": 3, "epoch": 0, "step": 0})
    assert by_sample(one) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, "seed 4"),
        ({"order": "quasi"}, "order quasi"),
        ({"samples": 61}, "samples 61"),
        ({"batch_global": 6}, "batch_global 6"),
        ({"order_version": 3}, "version 3 of the sample order"),
        ({"step": 6}, "step 6"),
    ],
)
def test_a_position_of_another_run_is_refused(shared: BetonLoader, change, words: str) -> None:
    shared.load_state_dict({"seed": 3, "epoch": 1, "step": 2})
    state = shared.state_dict()
    shared.load_state_dict(state)
    with pytest.raises(ConfigError, match=words):
        shared.load_state_dict({**state, **change})
    assert shared.state_dict() == state


def test_the_quasi_random_order_reaches_the_loader(beton: Path) -> None:
    one = loader(beton, order="quasi")
    assert one.state_dict()["order"] == "quasi"
    with pytest.raises(ConfigError, match="order random"):
        one.load_state_dict({"seed": 3, "epoch": 0, "step": 0, "order": "random"})


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"batch_global": 64, "batch_micro": 64}, ConfigError, "60 samples, fewer than one global"),
        ({"world": 64, "batch_global": 64, "batch_micro": 1}, ConfigError, "60 samples for 64 ran"),
        ({"batches_ahead": 0}, ConfigError, "batches_ahead 0: give a whole number from 1 on"),
        ({"batches_ahead": 2.0}, ConfigError, "batches_ahead 2.0: give a whole number"),
        ({"batch_micro": 12.0}, ConfigError, "batch_micro 12.0: give a whole number"),
        ({"world": 0}, ConfigError, "world 0: give a whole number"),
        ({"rank": True}, ConfigError, "rank True: give a whole number"),
        ({"workers": -1}, ConfigError, "workers -1"),
        ({"ranks_here": 0}, ConfigError, "ranks_here 0: give a whole number from 1 on"),
        ({"views": []}, ConfigError, "no views"),
        ({"views": VIEWS[0]}, ConfigError, "no views: ViewGeometry.*give a list"),
        ({"views": [24]}, ConfigError, r"no views: \[24\]; give a list"),
        ({"colour": "device"}, ConfigError, "colour: 'device'; give a Colouring"),
        ({"damaged": "ignore"}, ConfigError, "'ignore'"),
        ({"order": "quazi"}, ConfigError, "quasi"),
        ({"seed": -1}, ConfigError, "seed -1: give a whole number"),
        ({"seed": 2**64}, ConfigError, "seed 18446744073709551616: give a whole number"),
        ({"ids": np.arange(COUNT) < 12}, ConfigError, "ids: bool .*numpy.flatnonzero"),
        ({"ids": [*range(11), 11.5]}, ConfigError, "ids: float64 of shape"),
        ({"ids": [[*range(12)]]}, ConfigError, "ids: int64 of shape"),
        ({"ids": [[1], [1, 2]]}, ConfigError, r"ids: \[\[1\], \[1, 2\]\]; give a list of whole"),
        ({"ids": [*range(12), COUNT]}, DataError, f"no sample {COUNT}"),
    ],
)
def test_impossible_loaders_are_refused_before_a_thread(
    beton: Path, changes, error: type[Exception], words: str
) -> None:
    before = threading.active_count()
    with pytest.raises(error, match=words):
        loader(beton, **changes)
    assert threading.active_count() == before


def test_too_little_memory_is_refused_with_bytes_and_remedy(beton: Path, monkeypatch) -> None:
    need = 4 * 12 * (3 * (32**2 + 48**2) + 4 * (4**2 + 6**2) + 4)
    monkeypatch.setattr(buffers, "available_bytes", lambda: need)
    loader(beton)
    monkeypatch.setattr(buffers, "available_bytes", lambda: need - 1)
    with pytest.raises(ConfigError) as caught:
        loader(beton)
    for word in (f"{need:,}", f"{need - 1:,}", "smaller micro batch", "batches_ahead"):
        assert word in str(caught.value)


def test_available_memory_is_what_the_kernel_says() -> None:
    free = host.available_bytes()
    assert free is not None and 0 < free <= psutil.virtual_memory().available + 64 * MB


def test_a_containers_limit_counts_but_pages_of_files_are_available(
    tmp_path: Path, monkeypatch
) -> None:
    """The container that is read fills such pages: they must not make a loader be refused."""
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    without_limit = host.available_bytes()
    assert without_limit is not None and without_limit > 64 * MB
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4500\n")
    (tmp_path / "memory.stat").write_text("anon 900\nactive_file 3000\ninactive_file 400\n")
    assert host.available_bytes() == 5000 - 4500 + 3000 + 400


def test_a_container_closes_its_files_when_it_goes(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    container = OpenContainer(write_beton(tmp_path / "train.beton", plain_item, count=2))
    files = list(container._files)
    del container
    gc.collect()
    assert all(each.closed for each in files)
    assert not [each for each in recwarn if issubclass(each.category, ResourceWarning)]
