"""Damaged samples, failing threads, files that change: errors by name in time, never a hang."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ffcv.types import ALLOC_TABLE_TYPE, HeaderType

from harl_fast.data.container.manifest import names_path
from harl_fast.data.loader import EvalLoader
from harl_fast.data.prefetch import PrefetchThread
from harl_fast.errors import ConfigError, DataError
from tests.betons import plain_item, write_beton
from tests.data.support import COUNT, by_sample, damage, loader, rows

ROOT = Path(__file__).parents[2]
IN_TIME_S = 60.0
"""Where stock ffcv waits for ever; it takes a second on an idle machine."""


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beton(tmp_path_factory.mktemp("plain") / "train.beton", plain_item, count=COUNT)


@pytest.fixture(scope="module")
def broken(beton: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples 17, 18 and the last one are damaged."""
    return damage(beton, tmp_path_factory.mktemp("broken"), 17, 18, COUNT - 1)


def test_damage_is_an_error_that_names_sample_and_file(broken: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(EvalLoader(broken, size_px=32, batch=60))
    for word in (str(broken), "sample 17", "sample17.jpg", "make beton", "data.damaged=replace"):
        assert word in str(caught.value)


@pytest.mark.parametrize("content", [None, b"a\n", b"\xff"])
def test_damage_is_told_without_its_name_too(
    beton: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = damage(beton, tmp_path, 17)
    names_path(path).unlink()
    if content is not None:
        names_path(path).write_bytes(content)
    with pytest.raises(DataError, match=r"sample 17 \(.*train\.names\.txt\): its JPEG data are"):
        list(EvalLoader(path, size_px=32, batch=60))
    assert len(by_sample(EvalLoader(path, size_px=32, damaged="replace"))) == COUNT - 1


@pytest.mark.parametrize("changes", [{}, {"workers": 1, "batch_micro": 4}])
def test_the_next_sound_sample_stands_in_whatever_the_batch(
    beton: Path, broken: Path, changes: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Each row is either the sample's own or, bit for bit, that of the first sound one after it."""
    expected = by_sample(loader(beton))
    replacements = {17: 19, 18: 19, COUNT - 1: 0}
    one = loader(broken, damaged="replace", **changes)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        got = [(i, row) for b in one for i, row in zip(b.ids.tolist(), rows(b), strict=True)]
    order = [replacements.get(i, i) for i in one.order.rank_samples(0)[:].tolist()]
    assert got == [(i, expected[i]) for i in order]
    assert one.damage.count == 3
    assert {item.id for item in one.damage.first} == set(replacements)
    assert {item.name for item in one.damage.first} >= {"sample17.jpg"}
    for batch in one:
        assert not set(batch.ids.tolist()) & set(replacements)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3 and all("sample" in line and str(broken) in line for line in told)


def test_ranks_agree_on_the_replacement(broken: Path) -> None:
    together: list[tuple[int, tuple[bytes, ...]]] = []
    for rank in range(2):
        part = loader(broken, damaged="replace", rank=rank, world=2, batch_micro=6)
        together += [(i, r) for b in part for i, r in zip(b.ids.tolist(), rows(b), strict=True)]
    alone = loader(broken, damaged="replace")
    whole = [(i, r) for b in alone for i, r in zip(b.ids.tolist(), rows(b), strict=True)]
    assert sorted(together) == sorted(whole)


def test_a_mask_of_another_size_is_damage(beton: Path, tmp_path: Path) -> None:
    path = damage(beton, tmp_path)
    start = int(np.fromfile(path, HeaderType, count=1)[0]["alloc_table_ptr"])
    table = np.fromfile(path, ALLOC_TABLE_TYPE, offset=start)
    masks = table["size"] == 512
    assert masks.sum() == COUNT
    table["size"][masks & (table["sample_id"] == 17)] = 504
    with open(path, "r+b") as stream:
        stream.seek(start)
        stream.write(table.tobytes())
    with pytest.raises(DataError, match=r"sample 17 \(sample17.jpg\): its mask .* the wrong size"):
        list(loader(path))
    (one, two) = (loader(p, damaged="replace") for p in (path, beton))
    expected, got = by_sample(two), by_sample(one)
    assert got == {sample: row for sample, row in expected.items() if sample != 17}
    assert [item.id for item in one.damage.first] == [17]


def test_too_much_damage_is_an_error(beton: Path, tmp_path: Path) -> None:
    path = damage(beton, tmp_path, *range(20, 31))
    with pytest.raises(DataError, match=r"11 damaged samples met, more than the 10 .*--deep"):
        list(EvalLoader(path, size_px=32, damaged="replace"))
    with pytest.raises(ConfigError, match="'ignore'"):
        EvalLoader(path, size_px=32, damaged="ignore")


def test_a_failure_in_the_thread_names_its_sample(beton: Path, monkeypatch) -> None:
    """Stock ffcv's thread dies and the consumer waits for ever."""
    run, failed = PrefetchThread.decode, []

    def failing(self, samples, out):
        if 17 in samples:
            failed.append(time.monotonic())
            raise MemoryError("no room")
        return run(self, samples, out)

    monkeypatch.setattr(PrefetchThread, "decode", failing)
    with pytest.raises(DataError) as caught:
        list(loader(beton))
    assert time.monotonic() - failed[0] < IN_TIME_S
    for word in (str(beton), "sample 17:", "MemoryError: no room"):
        assert word in str(caught.value)
    assert isinstance(caught.value.__cause__, MemoryError)


@pytest.mark.parametrize("death", [SystemExit, None])
def test_a_dying_thread_is_an_error_in_time(beton: Path, monkeypatch, death) -> None:
    def fill(self, samples, out):
        if death:
            raise death
        raise _Gone

    class _Gone(BaseException):
        pass

    def silent(self) -> None:
        try:
            self._produce()
        except _Gone:
            return

    if death is None:
        monkeypatch.setattr(PrefetchThread, "run", silent)
    monkeypatch.setattr(PrefetchThread, "_fill", fill)
    one = loader(beton)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        next(iter(one))
    assert time.monotonic() - start < IN_TIME_S
    first = one.order.rank_samples(0)[:1].item()
    assert f"sample {first}" in str(caught.value) and str(beton) in str(caught.value)


def test_an_interrupt_in_the_consumer_leaves_no_thread(beton: Path, monkeypatch) -> None:
    before = threading.active_count()

    def busy_until_closed(self: PrefetchThread, *_: object) -> None:
        while not self.closed:
            time.sleep(0.01)

    waiting, get = threading.Event(), PrefetchThread._get

    def announced(self: PrefetchThread) -> object:
        waiting.set()
        return get(self)

    def interrupt() -> None:
        waiting.wait()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(PrefetchThread, "decode", busy_until_closed)
    monkeypatch.setattr(PrefetchThread, "_get", announced)
    batches = iter(loader(beton))
    other = threading.Thread(target=interrupt)
    # A shell's background job starts with the signal ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        other.start()
        with pytest.raises(KeyboardInterrupt):
            next(batches)
    finally:
        signal.signal(signal.SIGINT, handler)
    other.join()
    assert threading.active_count() == before


CUT = """
import os, sys
from pathlib import Path
from harl_fast.data.prefetch import PrefetchThread
from harl_fast.data.loader import EvalLoader
from harl_fast.errors import DataError

path, run = Path(sys.argv[1]), PrefetchThread.decode
size = path.stat().st_size

def cut(self, samples, out):
    # After the check that comes before a batch: the worst moment.
    if samples[0] and path.stat().st_size == size:
        os.truncate(path, 4096)
    return run(self, samples, out)

PrefetchThread.decode = cut
try:
    for batch in EvalLoader(path, size_px=32, batch=20, damaged="replace"):
        print("batch", batch.ids[0].item())
except DataError as error:
    print("refused:", error)
"""


def run_script(
    script: str, *args: object, limit_s: float = 600
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit_s,
    )


def test_a_file_cut_while_in_use_is_an_error(beton: Path, tmp_path: Path) -> None:
    path = damage(beton, tmp_path)
    done = run_script(CUT, path)
    assert done.returncode == 0, (done.returncode, done.stderr)  # SIGBUS would be -7
    lines = done.stdout.splitlines()
    assert lines[0] == "batch 0" and len(lines) == 2
    assert lines[1].startswith("refused:") and "4,096 bytes" in lines[1] and str(path) in lines[1]


def test_a_file_written_to_while_in_use_is_an_error(beton: Path, tmp_path: Path) -> None:
    path = damage(beton, tmp_path)
    one = loader(path)
    list(one)
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    with pytest.raises(DataError, match="written to"):
        list(one)


STOCK = """
import sys
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from harl_fast.data.container.fields import BitMaskField

def failing(self, *args):
    raise MemoryError("no room")

EpochIterator.run_pipeline = failing
pipelines = {"image": [CenterCropRGBImageDecoder((32, 32), 0.875)], "mask": None, "label": None}
loader = Loader(sys.argv[1], batch_size=12, num_workers=1, order=OrderOption.SEQUENTIAL,
                pipelines=pipelines, custom_fields={"mask": BitMaskField})
print("waiting", flush=True)
next(iter(loader))
"""
OURS = """
import sys, time
from harl_fast.data.prefetch import PrefetchThread
from harl_fast.data.loader import EvalLoader
from harl_fast.errors import DataError

def failing(self, *args):
    raise MemoryError("no room")

PrefetchThread.decode = failing
loader = EvalLoader(sys.argv[1], size_px=32)
print("waiting", flush=True)
start = time.monotonic()
try:
    next(iter(loader))
except DataError as error:
    sys.exit(f"{time.monotonic() - start} seconds: {error}")
"""


def wait_for_end(script: str, beton: Path, *, limit_s: float) -> tuple[int | None, str]:
    """Return exit code and errors of a script, counted from its word "waiting"; None: it hung."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(beton)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "waiting\n", process.stderr.read()
        try:
            _, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return None, process.communicate()[1]
        return process.returncode, errors
    finally:
        process.kill()


@pytest.mark.slow
def test_stock_ffcv_hangs_where_this_loader_raises(beton: Path) -> None:
    code, errors = wait_for_end(STOCK, beton, limit_s=20)
    assert code is None and "MemoryError: no room" in errors  # its thread told only stderr
    code, errors = wait_for_end(OURS, beton, limit_s=600)  # with the end of the interpreter
    assert code == 1 and "no room" in errors and "sample 0" in errors
    assert float(errors.splitlines()[-1].split()[0]) < IN_TIME_S
