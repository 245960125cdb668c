"""The data path: containers, masks, view geometry, decoding, loaders, colours."""

import numba
import numba.typed
import torch


def _leave_threads(_count: int) -> None:
    """Stand in for `set_num_threads` while ffcv is imported."""


# Importing ffcv sets torch and numba to one thread for the whole process, and numba then starts its
# threads. A process that has them cannot be forked with care: with TBB below numba, one that forked
# workers hung at its exit every few times. ffcv also puts two words into a typed dictionary, which
# compiles for 6 s at every start; no compiled function of ffcv reads it, a plain one will do.
_kept = numba.typed.Dict, numba.set_num_threads, torch.set_num_threads
numba.typed.Dict = dict
numba.set_num_threads = torch.set_num_threads = _leave_threads  # type: ignore[assignment]
try:
    import ffcv.pipeline.compiler
finally:
    numba.typed.Dict, numba.set_num_threads, torch.set_num_threads = _kept
ffcv.pipeline.compiler.set_num_threads = numba.set_num_threads  # for those who use ffcv's loader
