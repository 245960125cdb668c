"""The data path: containers, masks, view geometry, decoding, loaders, colours."""

import torch

_threads = torch.get_num_threads()
import ffcv.pipeline.compiler  # noqa: E402, F401  # its import sets torch's thread count to one

torch.set_num_threads(_threads)
