"""One pass over an FFCV pipeline that cannot hang, leak its thread, or hand out a bad sample."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import queue
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from ffcv.reader import Reader

from harl_fast.data.buffers import Slots
from harl_fast.data.container.manifest import FIELDS
from harl_fast.data.container.sigbus import Guard
from harl_fast.data.damage import Damage
from harl_fast.data.views.jpeg import OK
from harl_fast.errors import ConfigError, DataError, HarlError

_POLL_S = 1.0
_STALL_S = 60
"""A consumer that waits this long says so, and goes on waiting: storage may be slow."""
_COMPILING_S = 3 * _POLL_S
"""Compiled code gives its first batch within a second: after this a user wants to know more."""
_THREAD_SAFE = ("tbb", "omp")
_one_kernel = threading.Lock()
"""Numba's third threading layer, workqueue, ends the process when two threads use it at once."""

MASK_COLUMN = f"f{FIELDS.index('mask')}"
"""Where FFCV keeps the masks' metadata: its columns are numbered, not named."""

_log = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]


class MappedFile:
    """The memory-mapped container with what the decoders read beside it.

    Stands in for FFCV's memory manager and context. FFCV's own marks numba's shared uint8 array
    type as read-only for the whole process, which breaks every function compiled before, and
    builds Python sets and dictionaries of all samples at start.
    """

    def __init__(
        self, reader: Reader, control: np.ndarray, sums: npt.NDArray[np.uint64] | None
    ) -> None:
        table = np.sort(reader.alloc_table, order="ptr")
        self.path = Path(reader.file_name)
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  # open as long as mapped
        self._opened = self._facts()
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        data = np.frombuffer(self._map, np.uint8)
        self._guard = Guard(data)
        weakref.finalize(self, self._guard.close)
        self._state = (
            data,
            np.ascontiguousarray(table["ptr"]),
            np.ascontiguousarray(table["size"]),
            control,
            np.ascontiguousarray(reader.metadata[MASK_COLUMN]["data_ptr"]),
            np.empty((0, 2), np.uint64) if sums is None else sums,
        )

    @property
    def state(self) -> tuple[np.ndarray, ...]:
        """What `decode_batch` takes as storage: file, addresses, sizes, control, where masks lie,
        and the (N, 2) sums of images and masks, or none if they are not compared."""
        return self._state

    def _facts(self) -> tuple[int, int]:
        facts = os.fstat(self._file.fileno())
        return facts.st_size, facts.st_mtime_ns

    def check(self) -> None:
        """Raise DataError if the file was cut or written to since it was opened, or cannot be read.

        Costs a few microseconds; asked before and after each batch. A file replaced by renaming
        another one over it is no change: the old one lives on while it is open.
        """
        size, written = self._facts()
        if size != self._opened[0]:
            what = f"has {size:,} bytes, it had {self._opened[0]:,} when opened"
        elif written != self._opened[1]:
            what = "was written to"
        elif self._guard.hits:
            raise DataError(f"{self.path} could not be read in full: check its disk (`dmesg`)")
        else:
            return
        raise DataError(
            f"{self.path} {what}: it changed while in use, so its samples cannot be trusted. Never "
            f"write into a container that is being read; restore it and resume the run"
        )

    def forget(self) -> None:
        """Drop the pages read so far from this process's memory; the system's cache keeps them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class LoudEpoch(threading.Thread):
    """ffcv's batch thread with its silent failures closed. Items are (sample ids, *outputs).

    The stock thread dies on any exception while the consumer waits for ever, is never joined, and
    passes on whatever the buffer held when a JPEG is damaged. Here every failure is re-raised in
    the consumer, by the name of sample and file.
    """

    def __init__(self, loader: Any, order: Ids, *, slots: Slots, damage: Damage) -> None:
        super().__init__(name="harl_fast loader", daemon=True)
        self.loader, self.order, self.slots, self.damage = loader, order, slots, damage
        self.closed = self.finished = False
        self.slot_out: int | None = None
        self._delivered = False
        self._working_on = order[:0]
        self._process = os.getpid()
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._free = slots.open_all()
        self.start()

    def run(self) -> None:
        """Fill slots until the order ends, the consumer leaves, or something fails."""
        try:
            self._produce()
            self._ready.put(None)
        except HarlError as error:
            self._ready.put(error)
        except BaseException as error:  # noqa: BLE001  # the consumer must not wait for ever
            self._ready.put(self._failure(self._working_on, error))

    def _produce(self) -> None:
        numba.set_num_threads(self.loader.num_workers)
        size = self.loader.batch_size
        for start in range(0, len(self.order), size):
            slot = self._free.get()
            if slot is None or self.closed:
                return
            self._working_on = self.order[start : start + size]
            item = self._fill(self._working_on, slot)
            self._ready.put((slot, item))

    def _fill(self, samples: Ids, slot: int) -> tuple[Any, ...]:
        """Return the ids delivered and the outputs, all of them sound, in a slot."""
        wanted = self.damage.substitute(samples)
        outputs, status = self._decode(wanted, slot, 0)
        for row in np.flatnonzero(status != OK).tolist():
            wanted[row] = self._stand_in(int(wanted[row]), int(status[row]), slot, row)
        self.loader.memory_manager.forget()
        return wanted, *outputs

    def _stand_in(self, sample: int, status: int, slot: int, row: int) -> int:
        """Put the first sound sample after a damaged one into its row, and return its id."""
        bad, reason = sample, status
        while True:
            self.damage.met(bad, reason)
            other = self.damage.candidate(bad)
            _, found = self._decode(np.array([other], np.int64), slot, row)
            if found[0] == OK:
                self.damage.replaced(sample, other)
                return other
            bad, reason = other, int(found[0])

    def _decode(self, samples: Ids, slot: int, row: int) -> tuple[Any, npt.NDArray[np.int32]]:
        """Return the outputs and the (B,) status of ``samples`` in the rows from ``row`` on."""
        file = self.loader.memory_manager
        file.check()
        try:
            outputs = self.run_pipeline(samples, slot, row)
        except Exception as error:  # named below, and raised in the consumer
            raise self._blame(samples, slot, row, error) from error
        file.check()  # what was read while the file changed must not be handed out
        return outputs, self.loader.status(outputs)

    def run_pipeline(self, samples: Ids, slot: int, row: int) -> tuple[Any, ...]:
        """Run the compiled stages; the outputs are rows ``row``... of the slot's buffers."""
        stages, leaves = self.loader.code
        values = {
            "batch_indices": samples,
            "storage_state": self.loader.memory_manager.state,
            "metadata": self.loader.reader.metadata,
            **self.slots.memory(slot, row, row + len(samples)),
        }
        with _exclusive():
            for stage, names in stages:
                results = stage(**values)
                values |= {f"result_{n}": r for n, r in zip(names, results, strict=True)}
        return tuple(values[f"result_{leaf}"] for leaf in leaves)

    def _blame(self, samples: Ids, slot: int, row: int, error: Exception) -> HarlError:
        """Return an error that names the sample which fails alone too, or else the whole batch."""
        if isinstance(error, HarlError):
            return error
        for place in range(len(samples)):
            if self.closed:
                break
            one = samples[place : place + 1]
            try:
                self.run_pipeline(one, slot, row + place)
            except Exception as again:  # noqa: BLE001  # that is what we look for
                return self._failure(one, again)
        return self._failure(samples, error)

    def _failure(self, samples: Ids, error: BaseException) -> HarlError:
        ids = ", ".join(str(sample) for sample in samples[:3].tolist())
        more = f" and {len(samples) - 3} more" if len(samples) > 3 else ""
        failure = DataError(
            f"{self.damage.path}: sample {ids}{more}: the loader failed: "
            f"{type(error).__name__}: {error}. Please report this with the trace if it is not the "
            f"machine's memory or storage"
        )
        failure.__cause__ = error
        return failure

    def __iter__(self) -> LoudEpoch:
        return self

    def __next__(self) -> tuple[Any, ...]:
        """Return the next batch; its arrays are valid until the call after this one."""
        check_process(self._process)
        if self.closed:
            if self.finished:
                raise StopIteration
            raise ConfigError(
                "this pass over the loader was closed, or another was begun: a loader serves one "
                "pass at a time; make a second loader for a second one"
            )
        if self.slot_out is not None:
            self.slots.give_back(self.slot_out)
            self._free.put(self.slot_out)
            self.slot_out = None
        item = self._get()
        if item is None or isinstance(item, BaseException):
            self.finished = item is None
            self.close()
            raise item or StopIteration
        self.slot_out, batch = item
        self._delivered = True
        return batch  # type: ignore[no-any-return]

    def _get(self) -> Any:
        waited_s = 0.0
        while True:
            try:
                return self._ready.get(timeout=_POLL_S)
            except queue.Empty:
                if not self.is_alive() and self._ready.empty():
                    error = RuntimeError("its thread ended without a word")
                    return self._failure(self._working_on, error)
            waited_s += _POLL_S
            if waited_s == _COMPILING_S and not self._delivered:
                _log.warning(
                    "%s: no batch for %d s. On a machine that has not read so many views before, "
                    "the decoder is compiled now: half a minute or more, once (Slow first batch in "
                    "docs/troubleshooting.md). Otherwise the machine or its storage is busy",
                    self.damage.path,
                    waited_s,
                )
            if waited_s % _STALL_S == 0:
                ids = self._working_on[[0, -1]].tolist() if len(self._working_on) else "none yet"
                _log.warning(
                    "%s: no batch for %d s; working on the one from sample %s (first, last)",
                    self.damage.path,
                    waited_s,
                    ids,
                )

    def close(self) -> None:
        """Stop the thread and wait for it; the batch it is at is finished first."""
        if self.closed:
            return
        self.closed = True
        self._free.put(None)
        if self._process == os.getpid() and self is not threading.current_thread():
            self.join()
        if self.slot_out is not None:
            self.slots.give_back(self.slot_out)
            self.slot_out = None


def check_process(owner: int) -> None:
    """Raise ConfigError in a process other than ``owner``: threads do not live on in a fork."""
    if os.getpid() != owner:
        raise ConfigError(
            f"this loader belongs to process {owner} and was taken into process {os.getpid()} by "
            f"a fork, where its threads do not exist: build the loader in the process that uses "
            f"it, and do not put it into a torch DataLoader with workers"
        )


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """Hold other loaders' kernels off where numba's threads cannot serve two at once."""
    try:
        alone = numba.threading_layer() not in _THREAD_SAFE
    except ValueError:  # no parallel kernel ran yet, so nobody knows
        alone = True
    with _one_kernel if alone else contextlib.nullcontext():
        yield
