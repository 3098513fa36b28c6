"""All products, all eigenvalues: the exact numerical rank."""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from lightning_hessrank.operators import LossCurvature, Progress, SymmetricOperator
from lightning_hessrank.results import PARTS, Part, RankEstimate
from lightning_hessrank.tolerance import COUNT_TOLERANCES, machine_rtol, numerical_rank


def dense_rank(
    operator: SymmetricOperator,
    *,
    rtol: float | None = None,
    part: Part = "total",
    progress: Progress | None = None,
) -> RankEstimate:
    """Rank from every eigenvalue of the operator's matrix.

    Costs at most ``dim`` products, some ``24 dim²`` bytes, and ``O(dim³)`` for the eigenvalues.

    Args:
        operator: the symmetric matrix.
        rtol: relative cut-off in ``[0, 1)``; ``None``: ``dim * eps`` of the operator's dtype.
        part: what the operator is, for the result.
        progress: called between blocks of products.

    Raises:
        NonFiniteError: the matrix has nan or inf.
        MemoryError: not even one product fits into memory.
    """
    start = time.perf_counter()
    matrix = operator.spectral_matrix(progress)
    return spectrum_estimate(
        pad_with_zeros(symmetric_eigenvalues(matrix), operator.dim),
        rtol=machine_rtol(operator.dim, operator.dtype) if rtol is None else rtol,
        part=part,
        num_products=operator.dim,
        seconds=time.perf_counter() - start,
    )


def dense_parts(
    curvature: LossCurvature, *, rtol: float | None = None, progress: Progress | None = None
) -> dict[Part, RankEstimate]:
    """Ranks of the Hessian and, where the network's output is known, of its two parts."""
    parts = PARTS if curvature.outputs_known else PARTS[:1]
    return {
        part: dense_rank(curvature.operator(part), rtol=rtol, part=part, progress=progress)
        for part in parts
    }


def symmetric_eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, ascending, float64.

    Where a solver does not converge (GPU solvers are known to fail on rank-deficient matrices), the
    CPU's is tried, then LAPACK's other driver.
    """
    if matrix.device.type != "mps":
        matrix = matrix.to(torch.float64)
    try:
        return torch.linalg.eigvalsh(matrix).to(torch.float64)
    except LinAlgError:
        pass
    matrix = matrix.to("cpu", torch.float64)
    try:
        return torch.linalg.eigvalsh(matrix)
    except LinAlgError:
        return torch.linalg.eigh(matrix).eigenvalues


def pad_with_zeros(eigenvalues: Tensor, size: int) -> Tensor:
    """Return ascending eigenvalues with zeros added up to ``size`` of them."""
    zeros = eigenvalues.new_zeros(size - len(eigenvalues))
    return torch.cat([eigenvalues, zeros]).sort().values if len(zeros) else eigenvalues


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
