"""All products, all eigenvalues: the exact numerical rank."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from lightning_hessrank.estimators.measures import measures_of_spectrum
from lightning_hessrank.hessian.memory import memory_limit as default_memory_limit
from lightning_hessrank.hessian.operator import (
    Progress,
    SymmetricOperator,
    agrees,
    multiply_in_blocks,
    random_vectors,
)
from lightning_hessrank.results import PARTS, Part, RankEstimate
from lightning_hessrank.threads import threads_for
from lightning_hessrank.tolerance import (
    CLEAR_GAP,
    COUNT_TOLERANCES,
    machine_rtol,
    numerical_rank,
)


def dense_rank(
    operator: SymmetricOperator,
    *,
    rtol: float | None = None,
    memory_limit: int | None = None,
    part: Part = "total",
    progress: Progress | None = None,
) -> RankEstimate:
    """Rank from every eigenvalue of the operator's matrix.

    Costs at most ``dim`` products, some ``32 dim²`` bytes, and ``O(dim³)`` for the eigenvalues.

    Args:
        operator: the symmetric matrix.
        rtol: relative cut-off in ``[0, 1)``; ``None``: ``dim * eps`` of the operator's dtype.
        memory_limit: bytes; ``None``: half of what is free.
        part: what the operator is, for the result.
        progress: called between blocks of products.

    Raises:
        NonFiniteError: the matrix has nan or inf.
        MemoryError: the matrix, or not even one product, fits into memory.
    """
    start = time.perf_counter()
    check_memory(operator, memory_limit)
    matrix = operator.smaller_matrix()
    if matrix is None:
        matrix = operator.to_dense(progress)
        operator.check_finite(matrix)
    return _estimate(operator, matrix, rtol, part, start)


def _estimate(
    operator: SymmetricOperator, matrix: Tensor, rtol: float | None, part: Part, start: float
) -> RankEstimate:
    """Estimate from the operator's matrix, or from a smaller one."""
    estimate = spectrum_estimate(
        pad_with_zeros(symmetric_eigenvalues(matrix), operator.dim),
        rtol=machine_rtol(operator.dim, operator.dtype) if rtol is None else rtol,
        part=part,
        num_products=len(matrix),
        seconds=time.perf_counter() - start,
    )
    if rtol is not None or len(matrix) != operator.dim:
        return estimate
    return replace(estimate, doubt=_doubt(matrix, estimate))


#: Largest number of a row, relative to that of all, below which the row may be lost to rounding.
SMALL_ROW = 1e-6


def _doubt(matrix: Tensor, estimate: RankEstimate) -> str:
    """Say what speaks against a rank at machine precision that looks clear-cut, if anything does.

    ``D H D`` has the rank of ``H`` for every invertible diagonal ``D`` (other units of the
    parameters). Where rows of ``H`` differ by so much that small ones drown in the rounding errors
    of large ones, rows are scaled to the same size (D. Ruiz, RAL-TR-2001-034), and counted again.
    """
    size = matrix.abs().amax(dim=1)
    alive = size > 10 * estimate.rtol * size.max()  # others may be rounding errors themselves
    clear = estimate.gap is not None and estimate.gap >= CLEAR_GAP
    if not clear or not bool(alive.any()) or size[alive].min() >= SMALL_ROW * size.max():
        return ""
    scaled = matrix[alive][:, alive]
    for _ in range(5):
        root = scaled.abs().amax(dim=1).rsqrt()
        scaled = root[:, None] * scaled * root
    found = numerical_rank(symmetric_eigenvalues(scaled), estimate.rtol).rank
    if found <= estimate.rank:
        return ""
    return (
        f"the {estimate.part} Hessian is badly scaled: its rank is measured as {estimate.rank}, "
        f"but with its parameters in other units, which changes no exact rank, as {found}; so its "
        "gap proves nothing. Bring the inputs to similar sizes to know more"
    )


#: A smaller matrix of up to so many rows is preferred to any other way.
MAX_ROWS = 5000


def smaller_rank(
    operator: SymmetricOperator,
    *,
    rtol: float | None = None,
    max_rows: int = MAX_ROWS,
    memory_limit: int | None = None,
    part: Part = "total",
    progress: Progress | None = None,
) -> RankEstimate | None:
    """Exact rank from a smaller matrix with the same nonzero eigenvalues, where there is one.

    The outer part has one, of a row for every sample and output, whatever its dimension: then its
    spectrum is known at every tolerance, whichever method the total needs.

    Args:
        operator: the symmetric matrix.
        rtol: relative cut-off in ``[0, 1)``; ``None``: ``dim * eps`` of the operator's dtype.
        max_rows: of the smaller matrix.
        memory_limit: bytes; ``None``: half of what is free.
        part: what the operator is, for the result.
        progress: called between blocks of rows.

    Returns:
        ``None`` if there is no such matrix, or it has too many rows.

    Raises:
        NonFiniteError: the matrix has nan or inf.
    """
    start = time.perf_counter()
    limit = default_memory_limit(operator.device) if memory_limit is None else memory_limit
    rows = min(max_rows, math.isqrt(limit // dense_bytes(1)), operator.dim - 1)
    matrix = operator.smaller_matrix(rows + 1, progress)
    return None if matrix is None else _estimate(operator, matrix, rtol, part, start)


def dense_parts(
    operators: Mapping[Part, SymmetricOperator],
    *,
    rtol: float | None = None,
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> dict[Part, RankEstimate]:
    """Ranks of the Hessian and, where the network's output is known, of its two parts.

    Costs less than three times :func:`dense_rank`: the Hessian is the sum of its parts, unless its
    products say otherwise (a penalty on the weights is in neither part), and the eigenvalues of the
    outer part are those of a smaller matrix where it has one.

    Args:
        operators: of the Hessian (``"total"``) alone, or of it and both of its parts.
        rtol: relative cut-off in ``[0, 1)``; ``None``: ``p * eps``.
        memory_limit: bytes; ``None``: half of what is free.
        progress: called between blocks of products, of all parts together.

    Raises:
        NonFiniteError: a part has nan or inf.
        MemoryError: the matrices do not fit into memory.
    """
    whole = operators["total"]
    if len(operators) < len(PARTS):
        estimate = dense_rank(whole, rtol=rtol, memory_limit=memory_limit, progress=progress)
        return {"total": estimate}
    check_memory(whole, memory_limit)
    last, estimates = time.perf_counter(), {}

    def measure(part: Part, matrix: Tensor) -> RankEstimate:
        nonlocal last
        estimate = _estimate(whole, matrix, rtol, part, last)
        last = time.perf_counter()
        return estimate

    def build(part: Part, half: int) -> Tensor:
        matrix = operators[part].to_dense(_half(progress, half))
        operators[part].check_finite(matrix)
        return matrix

    functional = build("functional", 0)
    estimates["functional"] = measure("functional", functional)
    outer = build("outer", 1)
    smaller = operators["outer"].smaller_matrix(than=int(outer.any(dim=1).sum()))
    estimates["outer"] = measure("outer", outer if smaller is None else smaller)
    total = functional.add_(outer)
    vectors = random_vectors(len(total), total)
    if not agrees(total @ vectors, multiply_in_blocks(whole, vectors)):
        del functional, outer, smaller, total
        total = build("total", 2)
    estimates["total"] = measure("total", total)
    return {part: estimates[part] for part in PARTS}


def _half(progress: Progress | None, half: int) -> Progress | None:
    """Report on one of two runs of products as on one, and on a third as on their end."""
    if progress is None:
        return None
    return lambda done, total: progress(min(half * total + done, 2 * total), 2 * total)


def dense_bytes(dim: int) -> int:
    """Bytes that the matrix, what is made of it, and the eigenvalue solver take."""
    return 4 * 8 * dim * dim


def check_memory(operator: SymmetricOperator, memory_limit: int | None = None) -> None:
    """Raise unless the dense method fits into memory.

    Raises:
        MemoryError: it does not.
    """
    limit = default_memory_limit(operator.device) if memory_limit is None else memory_limit
    needed = dense_bytes(operator.dim)
    if needed > limit:
        raise MemoryError(
            f"the dense {operator.name} of {operator.dim:,} parameters needs about "
            f"{needed / 2**30:.2g} GiB, but the limit is {limit / 2**30:.2g} GiB; use "
            "method='sketch' with a max_rank, or method='lanczos'"
        )


def symmetric_eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, ascending, float64.

    Rows and columns of zeros (of weights on dead pixels, or of dead units) are left out of the
    computation. Where a solver does not converge (GPU solvers are known to fail on rank-deficient
    matrices), the CPU's is tried, then LAPACK's other driver.
    """
    size, alive = len(matrix), matrix.any(dim=1)
    if not bool(alive.all()):
        return pad_with_zeros(symmetric_eigenvalues(matrix[alive][:, alive]), size)
    if matrix.device.type != "mps":
        matrix = matrix.to(torch.float64)
    with threads_for(len(matrix)):
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
    negative = int((eigenvalues < 0).sum())
    zeros = eigenvalues.new_zeros(size - len(eigenvalues))
    return torch.cat([eigenvalues[:negative], zeros, eigenvalues[negative:]])


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
    nonzero = eigenvalues[eigenvalues != 0]
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
        counts={t: numerical_rank(nonzero, t).rank for t in COUNT_TOLERANCES},
        **measures_of_spectrum(eigenvalues),
    )
