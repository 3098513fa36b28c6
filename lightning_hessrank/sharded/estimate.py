"""Estimates of the rank of a live sharded module: what fits into the time, and what is resolved.

The estimator is the same Lanczos method as for large networks on one process; only its rows lie on
several. Counts below what differences of gradients resolve are not told.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from lightning_hessrank.budget import Plan
from lightning_hessrank.estimating import Ranks, headlined
from lightning_hessrank.estimators.choose import duration
from lightning_hessrank.estimators.lanczos import (
    DEFAULT_PRODUCTS,
    DEFAULT_RTOL,
    UnresolvedError,
    lanczos_rank,
)
from lightning_hessrank.hessian.memory import memory_limit
from lightning_hessrank.hessian.operator import Progress
from lightning_hessrank.results import RankEstimate
from lightning_hessrank.sharded.differences import DifferenceOperator, Resolution, resolve
from lightning_hessrank.sharded.live import LiveModule
from lightning_hessrank.sharded.shards import ShardProbes
from lightning_hessrank.tolerance import COUNT_TOLERANCES

#: A cut is told if it lies beyond the error of the products by this factor.
TOLD = 3.0
#: Share of the budget that is planned for products; the rest is for orthogonalising, and a reserve.
SHARE = 0.6
#: Fewest products worth starting with: four blocks of four start vectors.
FEWEST = 16


def sharded_ranks(
    live: LiveModule,
    *,
    rtol: float | None = None,
    plan: Plan | None = None,
    max_seconds: float | None = None,
    deadline: float | None = None,
    verify: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> Ranks:
    """Estimate the rank of the loss Hessian of a live sharded module.

    Args:
        live: the module, with this process's share of the data.
        rtol: relative tolerance of the rank; ``None``: the finest that is resolved.
        plan: what an earlier measurement of the run has decided.
        max_seconds: decides how many products are taken, where there is no plan.
        deadline: when all processes stop and tell what is known by then, as
            :func:`time.perf_counter` counts on any of them.
        verify: first compare the gradient with differences of the loss.
        seed: of the probes.
        progress: called between blocks of products.
        announce: told what was planned.

    Raises:
        NonFiniteError: the loss or its Hessian is not finite.
        WrongProductError: the gradient is not that of the loss.
        MemoryError: the basis does not fit.
        ProcessFailedError: another process failed; call this within its ``together()``.
    """
    began = time.perf_counter()
    with live.borrowed():
        resolution = resolve(live, seed=seed, verify=verify)
        if plan is None:
            each = 2 * (time.perf_counter() - began) / live.num_gradients
            plan = live.processes.first(_plan(live, each, max_seconds))
            if announce is not None:
                announce(plan.sentence)
        estimate = _estimate(
            live, resolution, plan, rtol, deadline=deadline, seed=seed, progress=progress
        )
    notes = [
        "the total rank only, without its parts: a sharded module is measured by differences of "
        "its gradients, which tell nothing of them"
    ]
    asked = rtol or plan.headline
    finest = TOLD * resolution.worst / _largest(estimate)
    if (asked or estimate.rtol) < finest:
        asked = asked or estimate.rtol
        notes.append(
            f"the count at rtol={asked:.3g} is not told: differences of gradients resolve "
            f"eigenvalues beyond {finest:.2g} of the largest here; pass a larger rtol, or compute "
            "in a higher precision"
        )
        estimate = replace(
            estimate, rank=math.nan, std_error=math.nan, rtol=asked, tolerance=math.nan
        )
    else:
        estimate = headlined(estimate, asked, notes)
    if plan.headline is None and not math.isnan(estimate.rank):
        plan = replace(plan, headline=estimate.rtol)
    loss, samples = resolution.loss, live.num_samples
    return Ranks({"total": estimate}, {}, loss, samples, plan=plan, notes=tuple(notes))


def _plan(live: LiveModule, each: float, max_seconds: float | None) -> Plan:
    most = min(DEFAULT_PRODUCTS, live.rows.dim)
    if max_seconds is not None:
        most = min(most, max(FEWEST, int(SHARE * max_seconds / each)))
    sentence = (
        f"lanczos by differences of gradients, sharded over {live.processes.count} processes: at "
        f"most {most:,} products, {duration(each)} each ({live.rows.dim:,} parameters, at most "
        f"{live.rows.most:,} on a process)"
    )
    return Plan("lanczos", max_products=most, seconds=most * each, sentence=sentence)


def _estimate(
    live: LiveModule,
    resolution: Resolution,
    plan: Plan,
    rtol: float | None,
    *,
    deadline: float | None,
    seed: int,
    progress: Progress | None,
) -> RankEstimate:
    """Run the estimator, and leave of its result what differences resolve."""
    operator = DifferenceOperator(live, resolution)
    finest = TOLD * resolution.worst / (resolution.scale or 1.0)
    resolved = [t for t in COUNT_TOLERANCES if t >= finest] or COUNT_TOLERANCES[:1]
    try:
        estimate = lanczos_rank(
            operator,
            rtol=max(rtol or plan.headline or DEFAULT_RTOL, min(resolved)),
            max_products=plan.max_products,
            deadline=deadline,
            memory_limit=min(live.processes.gather(memory_limit(operator.device))),
            progress=progress,
            probes=ShardProbes(live.rows, seed),
        )
    except UnresolvedError as error:
        if error.partial is None:
            raise
        estimate = error.partial
    return _told(estimate, resolution)


def _told(estimate: RankEstimate, resolution: Resolution) -> RankEstimate:
    """Drop counts below the resolution, and add the products' error to what is said of the rest.

    Products with Gaussian vectors, whose norms are ``√p``, are wrong by ``√p`` times the error of
    one with a unit vector, and ``xᵀHx`` by ``p`` times that of ``vᵀHv``.
    """
    finest = TOLD * resolution.worst / _largest(estimate)
    p, worst = estimate.num_parameters, resolution.worst
    added = {
        "largest": worst,
        "smallest": worst,
        "trace": max(p * resolution.drift, p**0.5 * worst),
        "frobenius_norm": p**0.5 * worst,
    }
    errors = {k: math.hypot(estimate.standard_errors.get(k, 0.0), v) for k, v in added.items()}
    unresolved = estimate.rtol < finest
    return replace(
        estimate,
        rank=math.nan if unresolved else estimate.rank,
        std_error=math.nan if unresolved else estimate.std_error,
        counts={t: c for t, c in estimate.counts.items() if t >= finest},
        count_errors={t: c for t, c in estimate.count_errors.items() if t >= finest},
        ranges={t: r for t, r in estimate.ranges.items() if t >= finest},
        standard_errors=errors,
    )


def _largest(estimate: RankEstimate) -> float:
    """Largest ``|λ|``; the least positive number for a Hessian that is zero."""
    found = max(abs(estimate.largest or 0.0), abs(estimate.smallest or 0.0))
    return found or math.ulp(0.0)
