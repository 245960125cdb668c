"""Trainings and evaluations that need more memory than there is."""

from __future__ import annotations

import pytest
import torch

from harl_fast.engine.machine import Machine, needing_all_ranks
from harl_fast.errors import HarlError


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError("Unable to allocate 1 GiB"),
    ],
)
def test_memory_that_does_not_suffice_is_one_line_with_what_helps(error: Exception) -> None:
    helps = r"memory of cpu .*smaller train_micro_batch_size_per_gpu"
    with pytest.raises(HarlError, match=helps), needing_all_ranks(Machine()):
        raise error
