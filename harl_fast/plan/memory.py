"""How much of a GPU's memory a training takes."""

from __future__ import annotations

from harl_fast.plan.hardware import GB, hardware
from harl_fast.plan.work import Work


def device_bytes(work: Work, *, micro: int, pixels: int, on_device: bool) -> float:
    """Return the peak bytes of one GPU.

    The sum of float32 weights, gradients, momentum and a reduction buffer (16 bytes per parameter;
    ZeRO's stage 1 spares a part of the momentum, which is not counted off) and target weights; of
    the activations that are saved for the backward pass (`Work.saved_bytes`) of ``micro`` images;
    of their views, ``pixels``, as float32 and, if the device colours them, twice as bytes; and of
    an assumed workspace.
    """
    weights = 16 * work.parameters + 4 * work.target_parameters
    views = 3 * pixels * (6 if on_device else 4)
    workspace = hardware().device["workspace_gb"].value * GB
    return weights + micro * work.saved_bytes + views + workspace
