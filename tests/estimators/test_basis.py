"""A basis in chunks does what a matrix does."""

from __future__ import annotations

import pytest
import torch

from lightning_hessrank.estimators import basis
from lightning_hessrank.estimators.basis import Basis


@pytest.mark.parametrize("columns", [1, 3, 100])  # that fit into a chunk
def test_it_is_a_matrix_of_columns(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basis, "CHUNK_BYTES", 8 * 10 * columns)
    V = torch.linalg.qr(torch.randn(10, 8, dtype=torch.float64)).Q
    x, c = torch.randn(10, 2, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    found = Basis(10, torch.device("cpu"))
    assert torch.equal(found.without(x), x)
    for block in V.split([2, 1, 4, 1], dim=1):
        found.append(block)
    assert found.size == 8
    torch.testing.assert_close(found.coordinates(x), V.T @ x)
    torch.testing.assert_close(found.vectors(c), V @ c)
    torch.testing.assert_close(found.without(x), x - V @ (V.T @ x))
    assert float((V.T @ found.without(x)).abs().max()) < 1e-14
