"""Reading a mapped file that was cut, or whose disk fails, without being killed by SIGBUS.

Asking for the file's size before a batch leaves a window: it may shrink while the batch is decoded,
and touching a page behind its new end then ends the process. libwayland's rule for shared buffers
closes it (wl_shm_buffer_begin_access): a handler of SIGBUS puts zero pages over the rest of the
mapping that the address belongs to and counts a hit. Decoding goes on over zeros, and the owner of
the mapping, who asks `Guard.hits` after each batch, throws its result away. A SIGBUS elsewhere goes
to the handler that was there before.

The handler runs between any two instructions of any thread, so it is machine code that calls mmap
and sigaction only; Python's own handlers run too late.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading

import llvmlite.binding as llvm
import numpy as np

GUARDED = 256
"""Mappings guarded at once in this process; further ones go without."""

_SA_SIGINFO, _SA_RESTART = 4, 0x10000000
_HANDLER = """
declare i8* @mmap(i8*, i64, i32, i32, i32, i64)
declare i32 @sigaction(i32, i8*, i8*)

define void @on_bus_error(i32 %signal, i8* %info, i8* %context) {{
entry:
  %field = getelementptr i8, i8* %info, i64 16
  %typed = bitcast i8* %field to i64*
  %address = load i64, i64* %typed
  br label %next
next:
  %row = phi i64 [0, %entry], [%following, %after]
  %offset = mul i64 %row, 24
  %start_at = add i64 %offset, {table}
  %length_at = add i64 %start_at, 8
  %hits_at = add i64 %start_at, 16
  %start_p = inttoptr i64 %start_at to i64*
  %length_p = inttoptr i64 %length_at to i64*
  %hits_p = inttoptr i64 %hits_at to i64*
  %start = load volatile i64, i64* %start_p
  %length = load volatile i64, i64* %length_p
  %inside = sub i64 %address, %start
  %ours = icmp ult i64 %inside, %length
  br i1 %ours, label %cover, label %after
after:
  %following = add i64 %row, 1
  %more = icmp ult i64 %following, {rows}
  br i1 %more, label %next, label %foreign
cover:
  %page = and i64 %address, {page_mask}
  %end = add i64 %start, %length
  %rest = sub i64 %end, %page
  %place = inttoptr i64 %page to i8*
  ; PROT_READ; MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
  %got = call i8* @mmap(i8* %place, i64 %rest, i32 1, i32 50, i32 -1, i64 0)
  %covered = icmp eq i8* %got, %place
  br i1 %covered, label %count, label %foreign
count:
  %hits = load volatile i64, i64* %hits_p
  %one_more = add i64 %hits, 1
  store volatile i64 %one_more, i64* %hits_p
  ret void
foreign:
  ; The instruction runs again and meets the handler from before ours.
  %before = inttoptr i64 {before} to i8*
  %done = call i32 @sigaction(i32 %signal, i8* %before, i8* null)
  ret void
}}
"""


class _Action(ctypes.Structure):
    """struct sigaction of Linux on 64-bit machines."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_SUPPORTED = sys.platform == "linux" and sys.maxsize > 2**32
_table = np.zeros((GUARDED, 3), np.uint64)  # start, length, hits; never moved, never freed
_before = _Action()
_lock = threading.Lock()
_machine_code: list[llvm.ExecutionEngine] = []


class Guard:
    """Zero pages instead of SIGBUS behind the end of one mapping, until `close`.

    ``mapped``: the bytes of a file mapped for reading, which must stay mapped until then.
    """

    def __init__(self, mapped: np.ndarray) -> None:
        self._row: int | None = None
        if not _SUPPORTED:
            return
        page = int(ctypes.CDLL(None).getpagesize())
        with _lock:
            _install(page)
            free = np.flatnonzero(_table[:, 1] == 0)
            if free.size:
                self._row = int(free[0])
                pages = -(-mapped.nbytes // page) * page
                _table[self._row] = (mapped.ctypes.data, 0, 0)
                _table[self._row, 1] = pages  # last: from here on the row counts

    @property
    def hits(self) -> int:
        """How often zero pages had to stand in; above 0 the mapping is of no use any more."""
        return 0 if self._row is None else int(_table[self._row, 2])

    def close(self) -> None:
        """Give the place in the table back."""
        if self._row is not None:
            _table[self._row, 1] = 0
            self._row = None


def _install(page: int) -> None:
    """Make SIGBUS come to us first, also when another library took it meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not _machine_code:
        text = _HANDLER.format(
            table=_table.ctypes.data,
            rows=GUARDED,
            page_mask=-page,
            before=ctypes.addressof(_before),
        )
        module = llvm.parse_assembly(text)
        machine = llvm.Target.from_default_triple().create_target_machine()
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        _machine_code.append(engine)
    address = _machine_code[0].get_function_address("on_bus_error")
    now = _Action()
    if libc.sigaction(signal.SIGBUS, None, ctypes.byref(now)) or now.handler == address:
        return
    ctypes.memmove(ctypes.byref(_before), ctypes.byref(now), ctypes.sizeof(now))
    ours = _Action(handler=address, flags=_SA_SIGINFO | _SA_RESTART)
    libc.sigaction(signal.SIGBUS, ctypes.byref(ours), None)
