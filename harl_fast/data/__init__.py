"""The data path: containers, masks, view geometry, decoding, loaders, colours."""

import numba
import numba.typed
import torch

# Importing ffcv sets both to one, for the whole process and for this thread.
_threads, _numba_threads = torch.get_num_threads(), numba.get_num_threads()
# It also puts two words into a typed dictionary, which compiles for 6 s at every start. No compiled
# function of ffcv reads it, so a plain dictionary will do.
_typed, numba.typed.Dict = numba.typed.Dict, dict
try:
    import ffcv  # noqa: F401
finally:
    numba.typed.Dict = _typed

torch.set_num_threads(_threads)
numba.set_num_threads(_numba_threads)
