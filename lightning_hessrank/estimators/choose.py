"""Which method: from the measured cost of a product, the memory there is, and what is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch

from lightning_hessrank.estimators.dense import dense_bytes, dense_rank, smaller_rank
from lightning_hessrank.estimators.lanczos import DEFAULT_PRODUCTS, default_probes, lanczos_rank
from lightning_hessrank.estimators.registry import ESTIMATORS, Request, estimator, method_names
from lightning_hessrank.estimators.search import basis_bytes, basis_size
from lightning_hessrank.estimators.sketch import CORE_RTOL, sketch_rank
from lightning_hessrank.hessian.memory import memory_limit as default_memory_limit
from lightning_hessrank.hessian.operator import Progress, SymmetricOperator
from lightning_hessrank.results import Method, Part, RankEstimate
from lightning_hessrank.threads import threads_for

#: Exact methods are preferred while they are expected to take no longer than this, in seconds.
PATIENCE = 120.0
#: Dense is preferred while it is expected to take no longer than this, even where a sketch would be
#: faster: its spectrum answers at every tolerance.
DENSE_PATIENCE = 5.0
#: Dimension up to which exact methods are not given up for their time: they take a minute at worst.
SMALL = 3000
#: Seconds beyond which work is timed once only.
LONG = 0.5


@dataclass(frozen=True)
class MethodChoice:
    """A method, and why it was chosen."""

    method: Method
    reason: str
    """One sentence with the figures that decided, for the log."""
    seconds: float
    """Expected time of one measurement; of lanczos the most that it may take."""
    bytes: int
    """Expected memory; the same."""


def choose_method(
    operator: SymmetricOperator,
    *,
    max_rank: int | None = None,
    rtol: float | None = None,
    memory_limit: int | None = None,
    patience: float = PATIENCE,
) -> MethodChoice:
    """Choose between dense, sketch and lanczos.

    Dense wins if it takes a few seconds, since its spectrum answers at every tolerance; then the
    cheaper of the exact methods (dense; sketch where ``max_rank`` is known), if it fits into the
    memory and is expected to take no longer than ``patience`` seconds; else lanczos.
    Small matrices are exact whatever the clock says, for it may say that the machine is busy.

    Costs two small blocks of products, one small eigenvalue problem, and where a dense matrix would
    fit one more evaluation of the loss with a few passes through its graph.

    Args:
        operator: what will be measured.
        max_rank: a known upper bound on its rank.
        rtol: tolerance that will be asked for; ``None``: the method's own.
        memory_limit: bytes; ``None``: half of what is free on the operator's device.
        patience: seconds.

    Raises:
        MemoryError: not even lanczos fits.
    """
    limit = default_memory_limit(operator.device) if memory_limit is None else memory_limit
    p, itemsize = operator.dim, operator.dtype.itemsize
    small = p <= SMALL and dense_bytes(p) <= limit
    product = seconds_per_product(operator)
    cubic = seconds_per_cube(operator)
    columns = operator.dense_cost() if dense_bytes(p) <= limit else p / 2
    exact = [MethodChoice("dense", "", columns * product + cubic * p**3, dense_bytes(p))]
    if max_rank is not None and 2 * max_rank < p and (rtol is None or rtol <= CORE_RTOL):
        k = max_rank + 8
        seconds = k * product + cubic * (k**3 + p * k * k / 4)
        exact.append(MethodChoice("sketch", "", seconds, 3 * 8 * k * k + 2 * 64 * p * itemsize))
    fitting = sorted((c for c in exact if c.bytes <= limit), key=lambda c: c.seconds)
    quick = [c for c in fitting if c.method == "dense" and c.seconds <= DENSE_PATIENCE]
    fitting = quick or fitting
    facts = f"{p:,} parameters, {duration(product)} a product, {limit / 2**30:.1f} GiB at most"
    if fitting and (small or fitting[0].seconds <= patience):
        best = fitting[0]
        reason = f"{best.method}: exact, about {duration(best.seconds)} ({facts})"
        return MethodChoice(best.method, reason, best.seconds, best.bytes)
    why = (
        f"an exact rank would take {min(c.bytes for c in exact) / 2**30:.1f} GiB"
        if not fitting
        else f"an exact rank would take about {duration(fitting[0].seconds)}"
    )
    probes = default_probes(operator)
    try:
        products = basis_size(operator, probes, DEFAULT_PRODUCTS, limit)
    except MemoryError as error:
        raise MemoryError(f"no method fits: {why}, and {error}") from None
    seconds = products * product + reorthogonalising(operator, products, probes)
    most = f"at most {products:,} products for each part, {duration(seconds)}"
    size = basis_bytes(operator, products, probes)
    return MethodChoice("lanczos", f"lanczos: {why} ({facts}); {most}", seconds, size)


def estimate_rank(
    operator: SymmetricOperator,
    *,
    method: Literal["auto"] | Method = "auto",
    rtol: float | None = None,
    max_rank: int | None = None,
    seed: int = 0,
    memory_limit: int | None = None,
    part: Part = "total",
    progress: Progress | None = None,
    counts: bool = False,
    max_products: int | None = None,
    deadline: float | None = None,
) -> RankEstimate:
    """Measure the rank of an operator by the named method, or by the one that fits.

    Args:
        operator: a symmetric matrix known by its products.
        method: a name in :data:`ESTIMATORS`, or ``"auto"``: see :func:`choose_method`.
        rtol: relative tolerance of the count; ``None``: the method's own.
        max_rank: a known upper bound on the rank, for the sketch.
        seed: of the probes.
        memory_limit: bytes; ``None``: half of what is free. Several processes must pass the same.
        part: what the operator is, for the result.
        progress: called between blocks of products with (done, total).
        counts: also at larger tolerances where that takes more time (sketch).
        max_products: largest number of products (lanczos); ``None``: the method's own.
        deadline: when to stop and tell what is known by then (lanczos), as
            :func:`time.perf_counter` counts.

    Raises:
        NonFiniteError: a product is nan or inf.
        MemoryError: what the method needs does not fit.
        UnresolvedError: sketch or lanczos cannot tell the count at this tolerance.
    """
    if method == "auto":
        exact = smaller_rank(
            operator, rtol=rtol, memory_limit=memory_limit, part=part, progress=progress
        )
        if exact is not None:
            return exact
        method = choose_method(
            operator, max_rank=max_rank, rtol=rtol, memory_limit=memory_limit
        ).method
    if method not in ESTIMATORS:
        listed = ", ".join(map(repr, method_names()))
        raise ValueError(f"method must be one of {listed}, got {method!r}")
    request = Request(
        rtol, max_rank, seed, memory_limit, part, progress, counts, max_products, deadline
    )
    return ESTIMATORS[method](operator, request)


@estimator("dense")
def _dense(operator: SymmetricOperator, request: Request) -> RankEstimate:
    return dense_rank(operator, **_common(request))


@estimator("sketch")
def _sketch(operator: SymmetricOperator, request: Request) -> RankEstimate:
    return sketch_rank(
        operator,
        max_rank=request.max_rank,
        seed=request.seed,
        counts=request.counts,
        **_common(request),
    )


@estimator("lanczos")
def _lanczos(operator: SymmetricOperator, request: Request) -> RankEstimate:
    most = DEFAULT_PRODUCTS if request.max_products is None else request.max_products
    return lanczos_rank(
        operator,
        seed=request.seed,
        max_products=most,
        deadline=request.deadline,
        **_common(request),
    )


class _Common(TypedDict):
    rtol: float | None
    memory_limit: int | None
    part: Part
    progress: Progress | None


def _common(request: Request) -> _Common:
    """What every built-in estimator heeds."""
    return {
        "rtol": request.rtol,
        "memory_limit": request.memory_limit,
        "part": request.part,
        "progress": request.progress,
    }


def seconds_per_product(operator: SymmetricOperator) -> float:
    """Wall time of one product in a block of the operator's size.

    On ones, since an operator may pass over zeros. The best of several, while they are short: what
    else runs on the machine only adds to it.
    """
    k = min(operator.block_size, operator.dim)
    vectors = torch.ones(operator.dim, k, dtype=operator.dtype, device=operator.device)
    operator.matmat(vectors)
    return _best(lambda: operator.matmat(vectors), operator.device) / k


def reorthogonalising(operator: SymmetricOperator, size: int, block: int) -> float:
    """Seconds that making a basis of ``size`` vectors orthonormal takes, from operation counts.

    Every block meets the whole basis once, to and fro, at the speed of a matrix product of its
    shape, which is measured.
    """
    rows = max(1, min(size, 32, 2**27 // (8 * operator.dim)))
    basis = torch.zeros(rows, operator.dim, dtype=torch.float64, device=operator.device)
    vectors = torch.zeros(block, operator.dim, dtype=torch.float64, device=operator.device).T
    basis @ vectors
    one = _best(lambda: basis @ vectors, operator.device) / rows  # a basis vector with a block
    return 2 * one * size * size / (2 * block)


def seconds_per_cube(operator: SymmetricOperator) -> float:
    """Wall time of the eigenvalues of an ``n × n`` matrix, over ``n³``, measured at ``n = 512``."""
    device = operator.device if operator.device.type != "mps" else torch.device("cpu")
    matrix = torch.eye(512, dtype=torch.float64, device=device) + 1.0
    with threads_for(len(matrix)):
        torch.linalg.eigvalsh(matrix)
        return _best(lambda: torch.linalg.eigvalsh(matrix), device) / 512**3


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Shortest of up to three times; one is enough if it is long."""
    times = [_timed(work, device)]
    while len(times) < 3 and times[0] < LONG:
        times.append(_timed(work, device))
    return min(times)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def duration(seconds: float) -> str:
    """Write a time with its unit."""
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
