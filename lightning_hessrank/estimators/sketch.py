"""The exact rank from a few more products than the rank: a Gaussian sketch of the matrix."""

from __future__ import annotations

import time
import warnings
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.estimators.core import SketchCore, columns_of
from lightning_hessrank.estimators.dense import (
    dense_rank,
    pad_with_zeros,
    symmetric_eigenvalues,
)
from lightning_hessrank.estimators.krylov import BlockKrylov
from lightning_hessrank.estimators.lanczos import UnresolvedError
from lightning_hessrank.estimators.probes import GaussianProbes
from lightning_hessrank.estimators.search import TopSearch, basis_size
from lightning_hessrank.hessian.memory import memory_limit as default_memory_limit
from lightning_hessrank.hessian.operator import Progress, SymmetricOperator, product_blocks
from lightning_hessrank.results import Part, RankEstimate
from lightning_hessrank.tolerance import (
    COUNT_TOLERANCES,
    check_rtol,
    machine_rtol,
    numerical_rank,
)

#: Columns beyond the expected rank: a core with this many zero eigenvalues is not full by accident.
OVERSAMPLING = 8
FIRST_SIZE = 64
#: Smallest gap of the core's spectrum at the cut that makes its count believable.
MIN_GAP = 1e3
#: The core distorts eigenvalues by orders of magnitude; cuts above this are not looked for there.
CORE_RTOL = 1e-8


def sketch_rank(
    operator: SymmetricOperator,
    *,
    max_rank: int | None = None,
    rtol: float | None = None,
    seed: int = 0,
    memory_limit: int | None = None,
    part: Part = "total",
    progress: Progress | None = None,
    counts: bool = False,
) -> RankEstimate:
    """Exact rank of a matrix of low rank, from ``max_rank`` + 8 products.

    Args:
        operator: the symmetric matrix.
        max_rank: an upper bound on the rank; ``None``: the sketch starts small and doubles.
        rtol: relative tolerance; ``None``: machine precision, ``dim * eps``.
        seed: of the probes.
        memory_limit: bytes; ``None``: half of what is free.
        part: what the operator is, for the result.
        progress: called between blocks of products with (done, total).
        counts: also count at the usual larger tolerances, as far as memory allows. Takes no more
            products, but about as long again where these are cheap.

    Returns:
        The rank, with the ``gap`` of the core: random vectors make it differ from the matrix's, by
        a factor of some ten.

    Raises:
        UnresolvedError: the spectrum has no gap at the cut.
        NonFiniteError: a product is nan or inf.
        MemoryError: what is needed does not fit.
    """
    begin = time.perf_counter()
    machine = machine_rtol(operator.dim, operator.dtype)
    rtol = machine if rtol is None else check_rtol(rtol)
    limit = default_memory_limit(operator.device) if memory_limit is None else memory_limit
    if max_rank is not None and max_rank < 0:
        raise ValueError(f"max_rank must be at least 0, got {max_rank}")
    found: _Found | None
    if rtol > CORE_RTOL:
        found = _from_krylov(operator, rtol, seed, limit, progress)
    else:
        found = _from_core(
            SketchCore(operator, seed, limit, keep_image=counts),
            max(rtol, machine),
            max_rank,
            seed=seed,
            limit=limit,
            progress=progress,
        )
    if found is None or (max_rank is not None and found.rank > max_rank):
        _warn_of_bound(max_rank, None if found is None else found.rank)
    if found is None:
        return dense_rank(
            operator, rtol=rtol, memory_limit=memory_limit, part=part, progress=progress
        )
    return RankEstimate(
        rank=found.rank,
        std_error=0.0,
        rtol=rtol,
        tolerance=rtol * found.largest,
        gap=found.gap,
        method="sketch",
        num_parameters=operator.dim,
        num_products=found.num_products,
        seconds=time.perf_counter() - begin,
        part=part,
        counts=found.counts,
    )


class _Found(NamedTuple):
    rank: int
    largest: float
    gap: float | None
    num_products: int
    counts: dict[float, float]


def _from_core(
    core: SketchCore,
    rtol: float,
    max_rank: int | None,
    *,
    seed: int,
    limit: int,
    progress: Progress | None,
) -> _Found | None:
    """Grow the core until it is not full; ``None`` where that would be more work than dense."""
    operator = core.operator
    first = min(FIRST_SIZE, operator.dim // 4) if max_rank is None else max_rank
    size = first + OVERSAMPLING
    while size < operator.dim:
        needed = 3 * size * size * operator.dtype.itemsize
        if needed > limit:
            raise MemoryError(
                f"a sketch with {size:,} columns needs {needed / 2**30:.2g} GiB, but the limit is "
                f"{limit / 2**30:.2g} GiB; use method='lanczos', or pass a larger memory_limit"
            )
        core.grow(size, progress)
        seen = numerical_rank(symmetric_eigenvalues(core.matrix), rtol)
        if seen.rank + OVERSAMPLING // 2 <= size:
            if seen.rank and (seen.gap or 0.0) < MIN_GAP:
                return _from_range(operator, core, rtol, limit=limit, progress=progress)
            spectrum = core.spectrum(seen.rank)
            if spectrum is not None:
                largest, counts = _read(*spectrum)
                return _Found(seen.rank, largest, seen.gap, core.size + 2, counts)
            largest, products = _largest_eigenvalue(operator, seed)
            return _Found(seen.rank, largest, seen.gap, core.size + products, {})
        size *= 2
    return None


def _read(eigenvalues: Tensor, error: float) -> tuple[float, dict[float, float]]:
    """Largest ``|λ|``, and the counts at tolerances well above the error."""
    largest = float(eigenvalues.abs().max())
    known = [t for t in COUNT_TOLERANCES if t * largest >= 10 * error]
    return largest, {t: numerical_rank(eigenvalues, t).rank for t in known}


def _from_range(
    operator: SymmetricOperator,
    core: SketchCore,
    rtol: float,
    *,
    limit: int,
    progress: Progress | None,
) -> _Found | None:
    """Count from an orthonormal basis ``Q`` of the range of ``HΩ``; ``None`` if dense is less work.

    Where the spectrum falls without a gap the core's distorts it across the cut. ``QᵀHQ`` has the
    eigenvalues of ``H`` themselves, to ``norm(HQ − Q QᵀHQ)`` (Parlett, The Symmetric Eigenvalue
    Problem, section 11.5).
    """
    size, dim = core.size, operator.dim
    if 2 * size >= dim or 3 * size * dim * operator.dtype.itemsize > limit:
        return None
    image = torch.empty(dim, size, dtype=operator.dtype, device=operator.device)
    for numbers, products in product_blocks(operator, size, core.columns, progress):
        image[:, numbers] = products
    basis = torch.linalg.qr(image).Q
    for numbers, products in product_blocks(operator, size, partial(columns_of, basis), progress):
        image[:, numbers] = products
    projected = basis.T @ image
    projected = (projected + projected.T) / 2
    error = float(torch.linalg.vector_norm(image - basis @ projected))
    values = pad_with_zeros(symmetric_eigenvalues(projected), dim)
    seen = numerical_rank(values, rtol)
    if error > seen.tolerance:
        raise UnresolvedError(
            f"the sketch cannot tell the count at rtol={rtol:.3g}: {size} products leave an error "
            f"of {error:.2g}, beyond the cut at {seen.tolerance:.2g}; use method='dense', or an "
            f"rtol above {CORE_RTOL:.0e}"
        )
    counts = {t: numerical_rank(values, t).rank for t in COUNT_TOLERANCES if t > rtol}
    largest = float(values.abs().max())
    return _Found(seen.rank, largest, seen.gap, 3 * size, dict(counts))


def _from_krylov(
    operator: SymmetricOperator, rtol: float, seed: int, limit: int, progress: Progress | None
) -> _Found:
    """Count from a subspace that holds everything beyond the cut."""
    block = min(OVERSAMPLING, operator.dim)
    search = TopSearch(
        operator,
        GaussianProbes(operator.dim, seed, dtype=operator.dtype, device=operator.device),
        block,
        basis_size(operator, block, operator.dim, limit),
        progress,
    )
    if not search.run(rtol):
        raise UnresolvedError(
            f"the sketch cannot tell the count at rtol={rtol:.3g} from {search.num_products} "
            "products, which is what fits into memory; use method='lanczos' for an estimate"
        )
    counts = {t: search.count(t) for t in COUNT_TOLERANCES}
    return _Found(
        int(search.count(rtol).value),
        search.largest,
        None,
        search.num_products,
        {t: int(c.value) for t, c in counts.items() if c.std_error == 0},
    )


def _largest_eigenvalue(operator: SymmetricOperator, seed: int) -> tuple[float, int]:
    """Largest ``|λ|`` to a few per cent, and the products that it took."""
    probes = GaussianProbes(operator.dim, seed, dtype=operator.dtype, device=operator.device)
    space = BlockKrylov(operator, probes.columns(0, min(4, operator.dim)), 64)
    while not space.exhausted:
        space.extend()
        pairs = space.ritz()
        top = int(pairs.values.abs().argmax())
        if float(pairs.residuals[top]) <= 0.1 * float(pairs.values[top].abs()):
            break
    return float(space.ritz().values.abs().max()), space.num_products


def _warn_of_bound(max_rank: int | None, rank: int | None) -> None:
    if rank is not None:
        text = f"max_rank={max_rank} does not hold: the rank is {rank}; the sketch was grown"
    else:
        text = (
            "the rank is too close to the dimension, or the gap at it too small, for a sketch "
            f"{'' if max_rank is None else f'with max_rank={max_rank} '}to pay; measured by "
            "method='dense' instead"
        )
    warnings.warn(text, RuntimeWarning, stacklevel=3)
