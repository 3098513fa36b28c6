"""All products, all eigenvalues: the exact numerical rank."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from lightning_hessrank.operators.base import SymmetricOperator
from lightning_hessrank.operators.loss import NonFiniteError
from lightning_hessrank.results import Part, RankEstimate
from lightning_hessrank.tolerance import COUNT_TOLERANCES, numerical_rank


def dense_rank(
    operator: SymmetricOperator, *, rtol: float | None = None, part: Part = "total"
) -> RankEstimate:
    """Rank from every eigenvalue of the operator's matrix.

    Costs ``dim`` products, ``8 dim²`` bytes a copy and ``O(dim³)`` for the eigenvalues.

    Raises:
        NonFiniteError: the matrix has nan or inf.
    """
    start = time.perf_counter()
    matrix = operator.to_dense()
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteError(f"the {part} Hessian is not finite at a finite loss")
    return spectrum_estimate(
        symmetric_eigenvalues(matrix),
        rtol=rtol,
        part=part,
        num_products=operator.dim,
        seconds=time.perf_counter() - start,
    )


def symmetric_eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, ascending, float64."""
    return torch.linalg.eigvalsh(matrix.to(torch.float64))


def spectrum_estimate(
    eigenvalues: Tensor,
    *,
    rtol: float | None,
    part: Part,
    num_products: int,
    seconds: float,
) -> RankEstimate:
    """Rank estimate from a whole spectrum, ``(dim,)`` ascending."""
    rank = numerical_rank(eigenvalues, rtol)
    return RankEstimate(
        rank=rank.rank,
        std_error=0.0,
        rtol=rank.rtol,
        tolerance=rank.tolerance,
        gap=rank.gap,
        method="dense",
        num_parameters=len(eigenvalues),
        num_products=num_products,
        seconds=seconds,
        part=part,
        eigenvalues=eigenvalues.cpu(),
        counts={t: numerical_rank(eigenvalues, t).rank for t in COUNT_TOLERANCES},
    )
