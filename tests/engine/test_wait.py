"""Waiting for images is told as that only while the GPU stands still: on a simulated GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harl_fast.data.buffers import Buffers, Outputs
from harl_fast.data.loader import BetonLoader
from harl_fast.data.prefetch import Ids, PrefetchThread
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.engine.loop import Stepping
from harl_fast.engine.monitor.alarms import Health, Supply
from harl_fast.engine.monitor.metrics import Meter
from harl_fast.engine.transfer import Transfer

GPU = torch.device("cuda")
STEP_S = 0.08
VIEWS = [ViewGeometry(size_px=32, cells=2, scale=(0.2, 1.0)) for _ in range(2)]
AHEAD = 3


class Queue:
    """What a GPU was asked for and works off later, in order and in real time.

    idle_s: how long it had nothing to do before it was asked for more.
    """

    def __init__(self) -> None:
        self.done_at, self.idle_s = time.monotonic(), 0.0

    def ask(self, seconds: float) -> None:
        """Queue work and return at once, as a kernel's launch does."""
        now = time.monotonic()
        self.idle_s += max(0.0, now - self.done_at)
        self.done_at = max(now, self.done_at) + seconds


class Event:
    """In place of `torch.cuda.Event`: a place in the queue."""

    queue: Queue

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        assert enable_timing or blocking, "waiting for it would keep a core busy"

    def record(self) -> None:
        self.at = max(time.monotonic(), self.queue.done_at)

    def query(self) -> bool:
        return time.monotonic() >= self.at

    def synchronize(self) -> None:
        time.sleep(max(0.0, self.at - time.monotonic()))

    def elapsed_time(self, later: Event) -> float:
        assert self.query() and later.query()
        return 1e3 * (later.at - self.at)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Put the simulated GPU in place of torch's; memory is what the machine has."""
    queue = Queue()
    monkeypatch.setattr(Event, "queue", queue, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr("harl_fast.data.buffers._empty", _empty)
    return queue


def _empty(shape: tuple[int, ...], kind: torch.dtype) -> Any:
    return torch.empty(shape, dtype=kind).numpy()


class RealQueue(Queue):
    """The same of a CUDA device, which waits where the simulated one computes."""

    def __init__(self) -> None:
        super().__init__()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for event in (start, end):  # the first warms up
            event.record()
            torch.cuda._sleep(10**7)
        end.synchronize()
        self._per_second = 1e3 * 10**7 / start.elapsed_time(end)

    def ask(self, seconds: float) -> None:
        torch.cuda._sleep(round(seconds * self._per_second))


def train(data: Path, queue: Queue, *, batch_s: float) -> tuple[dict[str, float], float]:
    """Return what the meter took of an epoch of asynchronous steps, and the GPU's true idle share.

    batch_s: how long the loader's thread needs for a batch, besides decoding.
    """
    loader = BetonLoader(
        data / "train.beton",
        views=VIEWS,
        batch_global=4,
        batch_micro=4,
        workers=1,
        batches_ahead=AHEAD,
    )
    plain = PrefetchThread.decode

    def slowly(thread: PrefetchThread, samples: Ids, out: Outputs) -> None:
        plain(thread, samples, out)
        time.sleep(batch_s)

    def colour(views: list[Tensor], **_: Any) -> list[Tensor]:
        queue.ask(STEP_S / 4 * len(views))
        return views

    colours = SimpleNamespace(batch=colour)
    state = SimpleNamespace(device=torch.device("cpu"), photometric=colours, loader=loader)
    stepping: Any = SimpleNamespace(state=state, _transfer=Transfer(torch.device("cpu")))
    meter = Meter(GPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrefetchThread, "decode", slowly)
        for number, batch in enumerate(meter.timed(loader)):
            if number == 0:  # what was before is start-up
                queue.idle_s, queue.done_at = 0.0, time.monotonic()
            queue.ask(0.002)  # the copies
            Stepping._views(stepping, batch, epoch=0)
            queue.ask(STEP_S / 2)
        assert number == loader.steps - 1 > 2 * AHEAD
        figures = meter.drain()
    loader.close()
    return figures, queue.idle_s / figures["elapsed_s"]


def alarms(figures: dict[str, float], *, steps: int = 25) -> set[str]:
    """Return the alarms that a log record with these waits raises."""
    wait = figures["wait_s"] / figures["elapsed_s"]
    health = Health(Supply(batches_ahead=AHEAD, on_gpu=True))
    health.check({"steps": steps, "skipped": 0, "wait": wait, "wait_worst": wait})
    return health.on


@pytest.mark.parametrize("batch_s", [0.0, 0.7 * STEP_S], ids=["fast", "just fast enough"])
def test_no_wait_is_told_while_the_gpu_has_work(data: Path, queue: Queue, batch_s: float) -> None:
    figures, idle = train(data, queue, batch_s=batch_s)
    # A busy test machine may delay the host by more than the step that the GPU still has to do.
    assert figures["wait_s"] / figures["elapsed_s"] < 0.01 + idle
    assert alarms(figures) == (set() if idle < 0.19 else {"data-wait"})


def test_a_slow_loader_is_told_by_how_long_the_gpu_stood_still(data: Path, queue: Queue) -> None:
    figures, idle = train(data, queue, batch_s=2.0 * STEP_S)
    wait = figures["wait_s"] / figures["elapsed_s"]
    assert wait > 0.2 and alarms(figures) == {"data-wait"}
    assert wait == pytest.approx(idle, abs=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("batch_s", [0.0, 0.7 * STEP_S, 2.0 * STEP_S])
def test_the_same_holds_on_a_gpu(data: Path, batch_s: float) -> None:
    figures, _ = train(data, RealQueue(), batch_s=batch_s)
    wait = figures["wait_s"] / figures["elapsed_s"]
    slow = batch_s > STEP_S
    assert wait > 0.2 if slow else wait < 0.01
    assert alarms(figures) == ({"data-wait"} if slow else set())


def test_a_buffer_is_filled_again_once_it_is_copied(queue: Queue) -> None:
    """And not when all is done that the GPU was asked for until the next batch."""
    buffers = Buffers(VIEWS, channels=3, coloured=False, batch=2, count=2)
    buffers.open_all()

    def until_filled(*steps: Callable[[], None]) -> float:
        start = time.monotonic()
        for step in steps:
            step()
        buffers.give_back(0)
        buffers.outputs(0)
        return time.monotonic() - start

    copies, rest = (lambda: queue.ask(0.1)), (lambda: queue.ask(0.4))
    assert 0.1 <= until_filled(copies, lambda: buffers.copied(0), rest) < 0.4
    time.sleep(max(0.0, queue.done_at - time.monotonic()))
    assert until_filled(copies, rest) >= 0.5  # it was not told which are the copies
