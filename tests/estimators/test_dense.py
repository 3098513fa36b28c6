"""Eigenvalues of a dense matrix: what is left out, and what happens where a solver fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_hessrank.estimators.dense import symmetric_eigenvalues
from tests.estimators.planted import planted, two_levels


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_where_a_solver_does_not_converge_another_is_tried(monkeypatch, failures: int) -> None:
    """On a GPU the second is the CPU's; LAPACK's other driver comes last."""
    matrix = planted(two_levels(2, 20)).matrix
    expected = torch.linalg.eigvalsh(matrix)
    solve, solve_with_vectors, calls = torch.linalg.eigvalsh, torch.linalg.eigh, []

    def failing(matrix: Tensor) -> Tensor:
        calls.append(("eigvalsh", matrix.device.type))
        if len(calls) <= failures:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return solve(matrix)

    def last(matrix: Tensor) -> object:
        calls.append(("eigh", matrix.device.type))
        return solve_with_vectors(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", failing)
    monkeypatch.setattr(torch.linalg, "eigh", last)
    found = symmetric_eigenvalues(matrix)
    assert calls == [("eigvalsh", "cpu"), ("eigvalsh", "cpu"), ("eigh", "cpu")][: failures + 1]
    assert float((found - expected).abs().max()) < 1e-14


def test_rows_of_zeros_are_zero_eigenvalues() -> None:
    matrix = torch.zeros(9, 9, dtype=torch.float64)
    matrix[2:5, 2:5] = planted(torch.tensor([3.0, -2.0, 1.0])).matrix
    sizes = []
    solve = torch.linalg.eigvalsh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "eigvalsh", lambda m: sizes.append(len(m)) or solve(m))
        found = symmetric_eigenvalues(matrix)
    assert sizes == [3]
    expected = torch.tensor([-2.0, 0, 0, 0, 0, 0, 0, 1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
