"""The time in which GPUs sum their gradients.

The law of a ring: each rank sends and receives 2 (n - 1) / n of the bytes (NCCL tests,
doc/PERFORMANCE.md). Between machines all of it passes each machine's network. ZeRO's reduction and
gathering move as much. Nothing of it overlaps the backward pass here (`overlap_comm` is refused).
"""

from __future__ import annotations


def allreduce_seconds(
    total_bytes: float, *, gpus: int, nodes: int, bus_bytes_s: float, network_bytes_s: float
) -> float:
    """Return the seconds of one all-reduce over ``nodes`` machines of ``gpus`` each.

    bus_bytes_s: NCCL's bus bandwidth within a machine. network_bytes_s: of each machine, one way.
    """
    ranks = gpus * nodes
    slowest = bus_bytes_s if nodes == 1 else min(bus_bytes_s, network_bytes_s)
    return 2 * (ranks - 1) / ranks * total_bytes / slowest
