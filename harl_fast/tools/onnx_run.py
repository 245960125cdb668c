"""Run a network in onnxruntime: `python -m harl_fast.tools.onnx_run MODEL IMAGES.npz OUT.npz`.

A program of its own, so that a crash in the runtime ends nothing else.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime

if __name__ == "__main__":
    model, images, out = sys.argv[1:]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(images) as batches:
        found = [session.run(None, {"images": batch}) for batch in batches.values()]
    np.savez(out, *(array for arrays in found for array in arrays))
    print(onnxruntime.__version__)
