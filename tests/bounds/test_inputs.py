"""Random inputs, and ranks of matrices that have no clear one."""

from __future__ import annotations

import pytest
import torch

from lightning_hessrank.bounds.inputs import flatten, matrix_rank


def test_a_spectrum_without_a_gap_counts_in_full() -> None:
    left, right = (torch.linalg.qr(torch.randn(20, 20)).Q for _ in range(2))
    decaying = left * torch.logspace(0, -19, 20) @ right
    assert matrix_rank(decaying) == 20
    clear = left * torch.tensor([1.0] * 7 + [0.0] * 13) @ right
    assert matrix_rank(clear) == 7


@pytest.mark.parametrize("count", [0, 3])
def test_samples_of_any_shape_are_rows(count: int) -> None:
    pieces = [torch.ones(count), torch.zeros(count, 2, 2), torch.ones(count, 0)]
    assert torch.equal(flatten(pieces), torch.tensor([[1.0, 0, 0, 0, 0]]).repeat(count, 1))
