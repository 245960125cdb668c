"""The time of a step on a GPU: a roofline of two resources, of which a fitted share is reached.

    t = (bytes / bandwidth + FLOP / peak) / eta

No overlap of the two is assumed; eta is fitted to published runs (`hardware.yaml`: anchors). Bytes
are passes over the outputs of convolutions and linear layers, FLOP those of `harl_fast.plan.work`.
"""

from __future__ import annotations

from harl_fast.plan.hardware import GB, MEGA, TERA, Case, Gpu, hardware
from harl_fast.plan.work import Work

_RESNET50_OUTPUTS = 11.11e6
"""Of a ResNet-50 at 224 px, to which `Kernels.train_mb` and its kin belong."""


def network_seconds(
    work: Work, gpu: Gpu, kernels: str, *, half: bool, synced: bool, case: Case
) -> tuple[float, float]:
    """Return the seconds per image of the online and of the target network.

    kernels: eager, compiled or best. synced: whether all BatchNorm layers share statistics.
    """
    table, own = hardware(), hardware().kernels[kernels]
    eta = (own.eta if half else table.fp32_eta).at(case)
    if synced:
        eta *= table.sync_bn.at(case)
    peak = (gpu.half_tflops if half else gpu.tf32_tflops).value * TERA
    element_s = (2 if half else 4) / (gpu.bandwidth_gb_s.value * GB)

    def seconds(traffic_mb: float, outputs: float, flops: float) -> float:
        passes = traffic_mb * MEGA / (2 * _RESNET50_OUTPUTS)
        return (passes * outputs * element_s + flops / peak) / eta

    online = seconds(own.train_mb.value, work.outputs, work.flops - work.target_flops)
    return online, seconds(own.forward_mb.value, work.target_outputs, work.target_flops)


def update_seconds(work: Work, gpu: Gpu) -> dict[str, float]:
    """Return the seconds in which a step's updates pass the GPU's memory, by name."""
    bandwidth, costs = gpu.bandwidth_gb_s.value * GB, hardware().device
    return {
        "optimizer": costs["optimizer_bytes"].value * work.parameters / bandwidth,
        "moving average": costs["average_bytes"].value * work.target_parameters / bandwidth,
    }


def input_seconds(gpu: Gpu, *, pixels: int, on_device: bool) -> dict[str, float]:
    """Return the seconds until a step's views are on a GPU and coloured, by name.

    pixels: of all its views. on_device: whether the device colours them; it is then sent bytes, and
    float32 otherwise.
    """
    costs = hardware().device
    parts = {"copies": 3 * pixels * (1 if on_device else 4) / (gpu.pcie_gb_s.value * GB)}
    if on_device:
        reached = costs["colour_eta"].value * gpu.bandwidth_gb_s.value * GB
        parts["colours"] = pixels * costs["colour_bytes_per_pixel"].value / reached
    return parts
