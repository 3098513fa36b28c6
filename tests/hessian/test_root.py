"""What keeps shortcuts honest: the check against true products, memory, odd inputs."""

from __future__ import annotations

import pytest
import torch

from lightning_hessrank.hessian.operator import agrees, random_vectors
from lightning_hessrank.tolerance import machine_rtol


@pytest.mark.parametrize("size", [300, 2000])
def test_an_error_that_a_rank_can_see_is_not_let_pass(size: int) -> None:
    """On a flat spectrum the cut is far below the same share of the Frobenius norm."""
    matrix = torch.ones(size, dtype=torch.float64)
    matrix[-1] = 0
    vectors = random_vectors(size, matrix)
    for times, passes in ((0.01, True), (4.0, False)):
        wrong = matrix.clone()
        wrong[-1] = times * machine_rtol(size)
        assert agrees(wrong[:, None] * vectors, matrix[:, None] * vectors) is passes
