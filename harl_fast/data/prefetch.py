"""One pass over a container that cannot hang, leak its thread, or hand out a bad sample."""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from harl_fast.data.buffers import Buffers, Outputs
from harl_fast.data.damage import Damage
from harl_fast.data.decode import Decoder
from harl_fast.data.order import Ids
from harl_fast.data.reader import OpenContainer
from harl_fast.data.views.jpeg import OK
from harl_fast.data.views.sample import UNREAD
from harl_fast.errors import ConfigError, DataError, HarlError

_POLL_S = 1.0
_STALL_S = 60
"""A consumer that waits this long says so, and goes on waiting: storage may be slow."""
_COMPILING_S = 3 * _POLL_S
"""Compiled code gives its first batch within a second: after this a user wants to know more."""

_log = logging.getLogger(__name__)


class Samples(Protocol):
    """Sample ids that are computed when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Ids: ...


class PrefetchThread(threading.Thread):
    """Fills buffers ahead of its consumer; iterate it for (ids of the rows, their `Outputs`).

    Every failure in the thread is raised in the consumer, by the name of sample and file.
    """

    def __init__(
        self,
        container: OpenContainer,
        order: Ids | Samples,
        *,
        decoder: Decoder,
        buffers: Buffers,
        damage: Damage,
        seed: int,
        epoch: int,
    ) -> None:
        super().__init__(name="harl_fast loader", daemon=True)
        self._container, self._order, self._decoder = container, order, decoder
        self._buffers, self._damage, self._seed, self._epoch = buffers, damage, seed, epoch
        self.closed = self.finished = False
        self._handed_out: int | None = None
        self._delivered = False
        self._working_on = order[:0]
        self._process = os.getpid()
        # A new thread's GPU is the first, where a mere wait would take half a GB for a context.
        self._gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._free = buffers.open_all()
        self.start()

    def run(self) -> None:
        """Fill buffers until the order ends, the consumer leaves, or something fails."""
        try:
            if self._gpu is not None:
                torch.cuda.set_device(self._gpu)
            self._produce()
            self._ready.put(None)
        except HarlError as error:
            self._ready.put(error)
        except BaseException as error:  # noqa: BLE001  # the consumer must not wait for ever
            self._ready.put(self._failure(self._working_on, error))

    def _produce(self) -> None:
        self._decode_backgrounds()
        for start in range(0, len(self._order), self._buffers.batch):
            buffer = self._free.get()
            if buffer is None or self.closed:
                return
            self._working_on = self._order[start : start + self._buffers.batch]
            self._ready.put((buffer, *self._fill(self._working_on, self._buffers.outputs(buffer))))

    def _decode_backgrounds(self) -> None:
        epoch = {"seed": self._seed, "epoch": self._epoch}
        self._working_on = samples = self._decoder.backgrounds_missing(**epoch)
        if len(samples):
            self._container.check(samples)
            status = self._decoder.decode_backgrounds(samples, **epoch)
            self._container.check(samples)  # as in `_decode`
            self._check_read(samples, status)

    def _fill(self, samples: Ids, out: Outputs) -> tuple[Ids, Outputs]:
        """Return the ids delivered and their rows of ``out``, all of them sound."""
        wanted, out = self._damage.substitute(samples), out.rows(0, len(samples))
        self._decode(wanted, out)
        for row in np.flatnonzero(out.status != OK).tolist():
            wanted[row] = self._stand_in(int(wanted[row]), out.rows(row, row + 1))
        return wanted, out

    def _stand_in(self, sample: int, out: Outputs) -> int:
        """Put the first sound sample after a damaged one into its row, and return its id."""
        other = sample
        while out.status[0] != OK:
            self._damage.met(other, int(out.status[0]))
            other = self._damage.candidate(other)
            self._decode(np.array([other], np.int64), out)
        self._damage.replaced(sample, other)
        return other

    def _decode(self, samples: Ids, out: Outputs) -> None:
        """Fill ``out`` with these samples and their status; raise what is no fault of a sample."""
        self._container.check(samples)
        try:
            self.decode(samples, out)
        except Exception as error:  # named below, and raised in the consumer
            raise self._blame(samples, out, error) from error
        self._container.check(samples)  # what was read while the file changed is not handed out
        self._check_read(samples, out.status)

    def _check_read(self, samples: Ids, status: npt.NDArray[np.int32]) -> None:
        for sample in samples[status == UNREAD].tolist():
            path = self._container.file_of(sample)[0]
            raise DataError(f"{path} could not be read in full: check its disk (`dmesg`)")

    def decode(self, samples: Ids, out: Outputs) -> None:
        """Run the kernel."""
        self._decoder(samples, out, seed=self._seed, epoch=self._epoch)

    def _blame(self, samples: Ids, out: Outputs, error: Exception) -> HarlError:
        """Return an error that names the sample which fails alone too, or else the whole batch."""
        if isinstance(error, HarlError):
            return error
        for row in range(len(samples)):
            if self.closed:
                break
            one = samples[row : row + 1]
            try:
                self.decode(one, out.rows(row, row + 1))
            except Exception as again:  # noqa: BLE001  # that is what we look for
                return self._failure(one, again)
        return self._failure(samples, error)

    def _failure(self, samples: Ids, error: BaseException) -> HarlError:
        ids = ", ".join(str(sample) for sample in samples[:3].tolist())
        more = f" and {len(samples) - 3} more" if len(samples) > 3 else ""
        failure = DataError(
            f"{self._container.path}: sample {ids}{more}: the loader failed: "
            f"{type(error).__name__}: {error}. Please report this with the trace if it is not the "
            f"machine's memory or storage"
        )
        failure.__cause__ = error
        return failure

    def __iter__(self) -> PrefetchThread:
        return self

    def __next__(self) -> tuple[Ids, Outputs]:
        """Return the next batch; its arrays are valid until the call after this one."""
        check_process(self._process)
        if self.closed:
            if self.finished:
                raise StopIteration
            raise ConfigError(
                "this pass over the loader was closed, or another was begun: a loader serves one "
                "pass at a time; make a second loader for a second one"
            )
        if self._handed_out is not None:
            self._buffers.give_back(self._handed_out)
            self._free.put(self._handed_out)
            self._handed_out = None
        item = self._get()
        if item is None or isinstance(item, BaseException):
            self.finished = item is None
            self.close()
            raise item or StopIteration
        self._handed_out, ids, outputs = item
        self._delivered = True
        return ids, outputs

    def copied(self) -> None:
        """Note that the GPU was asked for all copies of the batch handed out, see `Buffers`."""
        if self._handed_out is not None:
            self._buffers.copied(self._handed_out)

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
                    self._container.path,
                    waited_s,
                )
            if waited_s % _STALL_S == 0:
                ids = self._working_on[[0, -1]].tolist() if len(self._working_on) else "none yet"
                _log.warning(
                    "%s: no batch for %d s; working on the one from sample %s (first, last)",
                    self._container.path,
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
        if self._handed_out is not None:
            self._buffers.give_back(self._handed_out)
            self._handed_out = None


def check_process(owner: int) -> None:
    """Raise ConfigError in a process other than ``owner``: threads do not live on in a fork."""
    if os.getpid() != owner:
        raise ConfigError(
            f"this loader belongs to process {owner} and was taken into process {os.getpid()} by "
            f"a fork, where its threads do not exist: build the loader in the process that uses "
            f"it, and do not put it into a torch DataLoader with workers"
        )
