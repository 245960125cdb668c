"""What ranks exchange, between processes that meet over gloo."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from harl_fast.collectives import gather_in_place

RANKS = 3


def gather(rank: int, port: int) -> None:
    """Compare with torch's own, in and out of place, and among a part of the ranks."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, RANKS, is_master=rank == 0)
    limit = timedelta(minutes=1)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=limit)
    some = dist.new_group([2, 0], timeout=limit)  # another order than the world's
    for group in [None, some] if rank != 1 else [None]:
        ranks, own = dist.get_world_size(group), dist.get_rank(group)
        for count in (1, 1000):
            part = torch.randn(count)
            expected, found = torch.zeros(2, ranks * count)
            dist.all_gather_into_tensor(expected, part, group)
            assert gather_in_place(found, part, group) is None
            assert torch.equal(found, expected)
            within = torch.zeros(ranks * count)
            mine = within[own * count :][:count].copy_(part)
            gather_in_place(output_tensor=within, input_tensor=mine, group=group)
            assert torch.equal(within, expected)
            work = gather_in_place(found.zero_(), part, group, async_op=True)
            assert work is not None
            work.wait()
            assert torch.equal(found, expected)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_parts_gathered_in_place_are_what_torch_gathers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(gather, (port,), nprocs=RANKS, start_method="spawn")
