"""The arrays of preprocessing, by the names that its modules use for them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""uint8: RGB, (H, W, 3), where nothing else is said."""
Mask = npt.NDArray[np.bool_]
"""(H, W), True is foreground."""
Map = npt.NDArray[np.float32]
"""A soft map, (H, W) in [0, 1], or other float32 planes."""
