"""Eigenvalue counts beyond a tolerance from a Krylov subspace: exact at the top, estimated below.

One block Krylov subspace from random probes does two things. Eigenvalues whose Ritz pairs have
converged are counted, exactly; that is the top of the spectrum, where the outliers of a trained
network are. What has not converged is estimated by stochastic Lanczos quadrature with the same
probes (Ubaru, Chen, Saad, SIAM J. Matrix Anal. Appl. 38, 2017), with a standard error over probes.
Plain quadrature, without the first part, has a standard error of ``sqrt(2 count / probes)``; here
only the unconverged eigenvalues contribute to it.
"""

from __future__ import annotations

import math
import time

from lightning_hessrank.estimators.probes import GaussianProbes, Probes
from lightning_hessrank.estimators.search import TopSearch, basis_size
from lightning_hessrank.hessian.operator import Progress, SymmetricOperator
from lightning_hessrank.results import Part, RankEstimate
from lightning_hessrank.tolerance import COUNT_TOLERANCES, check_rtol

DEFAULT_RTOL = 1e-3
DEFAULT_PRODUCTS = 1200
#: Products with each start vector that are worth more than another start vector.
POWERS = 10


class UnresolvedError(ArithmeticError):
    """A method cannot tell the count at the tolerance asked for; the message says what can.

    Attributes:
        partial: what is known nevertheless, with a rank of ``nan``: counts at other tolerances,
            ranges at all; ``None`` where that is nothing.
    """

    def __init__(self, message: str, partial: RankEstimate | None = None) -> None:
        super().__init__(message)
        self.partial = partial


def lanczos_rank(
    operator: SymmetricOperator,
    *,
    rtol: float | None = None,
    seed: int = 0,
    num_probes: int | None = None,
    max_products: int = DEFAULT_PRODUCTS,
    deadline: float | None = None,
    memory_limit: int | None = None,
    part: Part = "total",
    progress: Progress | None = None,
    probes: Probes | None = None,
) -> RankEstimate:
    """Count eigenvalues beyond ``rtol * max|λ|``, with a standard error where it is an estimate.

    The subspace grows until every Ritz value is certainly on one side of the cut (then the count is
    exact, and its standard error zero), or until ``max_products``.

    Args:
        operator: the symmetric matrix.
        rtol: relative tolerance; ``None``: 1e-3.
        seed: of the probes.
        num_probes: random start vectors, at least 2; ``None``: see :func:`default_probes`.
        max_products: largest number of products, and of vectors in memory, for one subspace.
        deadline: when to stop growing, as :func:`time.perf_counter` counts; ``None``: never.
        memory_limit: bytes for these vectors; ``None``: half of what is free.
        part: what the operator is, for the result.
        progress: called between blocks of products with (done, at most).
        probes: start vectors; ``None``: Gaussian ones, drawn from ``seed``.

    Raises:
        UnresolvedError: the count at ``rtol`` cannot be told from so many products.
        NonFiniteError: a product is nan or inf.
        MemoryError: fewer than four blocks of probes fit into memory.
    """
    begin = time.perf_counter()
    rtol = DEFAULT_RTOL if rtol is None else check_rtol(rtol)
    if num_probes is None:
        num_probes = default_probes(operator, max_products)
    if num_probes < 2:
        raise ValueError(
            f"num_probes must be at least 2 (a standard error needs two), got {num_probes}"
        )
    size = basis_size(operator, num_probes, max_products, memory_limit)
    if probes is None:
        probes = GaussianProbes(operator.dim, seed, dtype=operator.dtype, device=operator.device)
    search = TopSearch(operator, probes, num_probes, size, progress, deadline=deadline)
    search.run(rtol)
    count = search.count(rtol)
    known = {t: c for t in COUNT_TOLERANCES if (c := search.count(t)).resolved}
    estimate = RankEstimate(
        rank=count.value if count.resolved else math.nan,
        std_error=count.std_error if count.resolved else math.nan,
        rtol=rtol,
        tolerance=rtol * search.largest,
        gap=None,
        method="lanczos",
        num_parameters=operator.dim,
        num_products=search.num_products,
        seconds=time.perf_counter() - begin,
        part=part,
        counts={t: c.value for t, c in known.items()},
        count_errors={t: c.std_error for t, c in known.items()},
        num_probes=num_probes,
        ranges=search.ranges(sorted({rtol, *COUNT_TOLERANCES})),
        **search.measures(),
    )
    if not count.resolved:
        advice = f"it resolves rtol={min(known):.0e} here; " if known else ""
        raise UnresolvedError(
            f"lanczos cannot resolve rtol={rtol:.3g} with {search.num_products} products: "
            f"{count.ambiguity:.0f} eigenvalues may lie on either side of the cut, beside a count "
            f"of {count.value:.0f}; {advice}pass a larger rtol or more max_products, or use "
            "method='dense'",
            estimate,
        )
    return estimate


def default_probes(operator: SymmetricOperator, max_products: int = DEFAULT_PRODUCTS) -> int:
    """How many start vectors: 8, or 4 where the operator multiplies fewer at a time.

    Fewer, but 2 at least, where there are products for less than :data:`POWERS` powers of the
    matrix otherwise, which it takes to tell the top of a spectrum.

    The fewer, the fewer products the top of the spectrum takes (LeNet-5 at 1e-1: 72, 48 and 36 with
    8, 4 and 2), but the less the probes say of the rest: with 2 of them an interval is 12.7
    standard errors wide, with 4 of them 3.2. Blocks cost nothing where products come in blocks.
    """
    probes = 8 if operator.block_size >= 8 else 4
    while probes > 2 and max_products < min(POWERS * probes, operator.dim):
        probes //= 2
    return probes
