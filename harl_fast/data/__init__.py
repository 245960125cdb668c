"""The data path: containers, masks, view geometry, decoding, loaders, colours."""

import numba
import torch

# Importing ffcv sets both to one, for the whole process and for this thread.
_threads, _numba_threads = torch.get_num_threads(), numba.get_num_threads()

import ffcv  # noqa: E402, F401

torch.set_num_threads(_threads)
numba.set_num_threads(_numba_threads)
