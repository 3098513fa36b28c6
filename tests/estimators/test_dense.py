"""Eigenvalues of a dense matrix: what is left out, and what happens where a solver fails."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_hessrank import hessian_rank, rank_bound
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


def _scaled_linear_network(factor: float) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A linear network of exact rank 24 (closed form), with one input in units of ``factor``."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False)).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
    x[:, 0] *= factor
    return net, (x, y)


@pytest.mark.parametrize("factor", [1e9, 1e-9])
def test_a_clear_cut_rank_of_a_badly_scaled_hessian_is_doubted(factor: float) -> None:
    net, data = _scaled_linear_network(factor)
    assert rank_bound(net, data[0], data=data[0]).total == 24
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = hessian_rank(net, "mse", data)
    assert found.rank < 24
    assert found.gap > 1e3
    match = re.match(
        r"the total Hessian is badly scaled: its rank is measured as (\d+), but with its "
        r"parameters in other units, which changes no exact rank, as (\d+); so its gap proves "
        r"nothing\. Bring the inputs to similar sizes to know more$",
        found.doubt,
    )
    assert match is not None
    assert found.rank == int(match[1]) < int(match[2]) <= 24
    assert [str(x.message) for x in said] == [found.doubt]


@pytest.mark.parametrize("factor", [1.0, 1e2, 0.0])
def test_a_well_scaled_hessian_is_not_doubted(factor: float) -> None:
    net, data = _scaled_linear_network(factor)
    found = hessian_rank(net, "mse", data)
    assert found.doubt == ""
    assert found.rank == (24 if factor else rank_bound(net, data[0], data=data[0]).total)


def test_rows_of_rounding_errors_are_no_doubt() -> None:
    """A bias before batch norm has a gradient of zero, to rounding."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
    data = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    found = hessian_rank(net, "mse", data)
    assert found.rank <= found.num_parameters - 5
    assert found.doubt == ""
