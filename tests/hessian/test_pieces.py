"""Blocks between pieces, against the dense matrix."""

from __future__ import annotations

import pytest
import torch

from lightning_hessrank.hessian.operator import DenseOperator
from lightning_hessrank.hessian.pieces import Restricted, block_norms, rows_of

PIECES = [torch.tensor([0, 3, 4]), torch.tensor([1, 2]), torch.tensor([6, 7, 8, 9])]


def matrix() -> torch.Tensor:
    half = torch.randn(10, 10, dtype=torch.float64)
    return half + half.T


def test_restricted_is_the_principal_block() -> None:
    full = matrix()
    numbers = torch.tensor([7, 1, 4])
    found = Restricted(DenseOperator(full), numbers)
    assert torch.allclose(found.to_dense(), full[numbers][:, numbers])


def test_exact_norms_are_those_of_the_blocks() -> None:
    full = matrix()
    found = block_norms(DenseOperator(full), PIECES, exact=True)
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
    for (i, j), norm in found.items():
        assert norm.value == pytest.approx(float(full[PIECES[i]][:, PIECES[j]].norm()))
        assert norm.std_error == 0


def test_estimates_cover_the_norms_and_their_error_is_that_seen() -> None:
    full = matrix()
    operator = DenseOperator(full)
    runs = [block_norms(operator, PIECES, exact=False, seed=seed) for seed in range(100)]
    for i, j in runs[0]:
        true = float(full[PIECES[i]][:, PIECES[j]].norm())
        values = torch.tensor([run[i, j].value for run in runs])
        errors = torch.tensor([run[i, j].std_error for run in runs])
        assert abs(float(values.mean()) - true) < 0.05 * true
        assert 0.6 < float(values.std() / errors.mean()) < 1.6


def test_a_block_of_zeros_has_norm_zero() -> None:
    full = torch.eye(10, dtype=torch.float64)
    for exact in (True, False):
        assert block_norms(DenseOperator(full), PIECES, exact=exact)[0, 1] == (0.0, 0.0)


def test_rows_are_counted_over_all_parameters() -> None:
    parameters = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(())}
    piece = {"a": slice(1, 2), "b": slice(0, 2), "c": slice(None)}
    assert rows_of(piece, parameters).tolist() == [3, 4, 5, 6, 7, 10]
