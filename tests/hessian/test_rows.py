"""Rows: all here by default, and everything that needs all of them goes through one place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_hessrank.estimators import lanczos_rank
from lightning_hessrank.hessian.operator import SymmetricOperator
from lightning_hessrank.hessian.rows import Rows
from tests.estimators.planted import planted


def test_all_rows_are_here() -> None:
    block = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = Rows(9)
    q, r = rows.qr(block)
    torch.testing.assert_close(q @ r, block)
    torch.testing.assert_close(rows.norms(block), block.norm(dim=0))
    assert rows.sum(block) is block
    assert [rows.anyone(flag) for flag in (True, False)] == [True, False]


class Doubled(Rows):
    """Half of the rows of vectors whose other half is the same: ``x / √2``, twice."""

    def sum(self, values: Tensor) -> Tensor:
        return 2 * values

    def norms(self, block: Tensor) -> Tensor:
        return 2**0.5 * super().norms(block)

    def qr(self, block: Tensor) -> tuple[Tensor, Tensor]:
        q, r = super().qr(block)
        return q / 2**0.5, r * 2**0.5


class Twice(SymmetricOperator):
    """A matrix on two processes that both store all of its vectors."""

    def __init__(self, operator: SymmetricOperator) -> None:
        self._operator = operator
        self.dim, self.dtype, self.device = operator.dim, operator.dtype, operator.device

    @property
    def rows(self) -> Rows:
        return Doubled(self.dim)

    def matmat(self, vectors: Tensor) -> Tensor:
        return self._operator.matmat(vectors)


class HalfProbes:
    """Probes as one of the two stores them."""

    def __init__(self, dim: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self._all = torch.randn(dim, 64, dtype=torch.float64, generator=generator)

    def columns(self, start: int, stop: int) -> Tensor:
        return self._all[:, start:stop] / 2**0.5


def test_estimates_see_the_rows_of_all_processes() -> None:
    values = torch.tensor([5.0, -3.0, 2.0, 1.0, 0.5, 1e-6], dtype=torch.float64)
    operator = Twice(planted(values, 40))
    found = lanczos_rank(operator, rtol=1e-3, probes=HalfProbes(40))
    assert (found.rank, found.std_error) == (5, 0)
    assert found.largest == pytest.approx(5, rel=1e-12)
    assert found.smallest == pytest.approx(-3, rel=1e-12)
