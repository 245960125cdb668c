"""Products by oneDNN against float64."""

from __future__ import annotations

import pytest
import torch

from harl_fast.eval.matmul import matmul


@pytest.mark.parametrize(
    "shape", [(256, 512, 2424), (1, 3, 1), (7, 1, 5), (0, 4, 3), (1000, 33, 8)]
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_in_any_layout_is_that_of_float64(
    shape: tuple[int, int, int], turned: bool
) -> None:
    rows, terms, columns = shape
    generator = torch.Generator().manual_seed(terms)
    a = torch.randn(rows, terms, generator=generator)
    b = torch.randn(terms, columns, generator=generator)
    if turned:
        a, b = a.T.contiguous().T, b.T.contiguous().T
    # Each of the terms is rounded at most as often as there are terms.
    limit = terms * torch.finfo(torch.float32).eps * (a.abs().double() @ b.abs().double())
    assert ((matmul(a, b) - a.double() @ b.double()).abs() <= limit).all()
