"""Estimates within a budget: what a plan asks for, measured part by part, and whatever is known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from lightning_hessrank.budget import PROBE_SAMPLES, Plan, make_plan
from lightning_hessrank.estimators import UnresolvedError, estimate_rank, smaller_rank
from lightning_hessrank.hessian import LossCurvature, Progress, SymmetricOperator
from lightning_hessrank.hessian.memory import memory_limit
from lightning_hessrank.hessian.operator import agrees, random_vectors
from lightning_hessrank.hessian.pieces import Norm
from lightning_hessrank.hessian.verify import NoSecondDerivativeError, missing_derivatives_named
from lightning_hessrank.opening import (
    AnyCurvature,
    by_differences,
    explained,
    opened,
    resolution_of,
    resolved,
    shared,
)
from lightning_hessrank.processes import Processes
from lightning_hessrank.results import PARTS, Part, RankBound, RankEstimate
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.subject import Subject

#: Share of the budget at whose end the outer part's smaller matrix is due, and those of estimates
#: that follow. Estimated, the outer part comes before the functional one: it is what is left then.
SMALLER_DUE = 0.35
DUE: dict[Part, float] = {"total": 0.7, "outer": 0.85, "functional": 1.0}
#: Evaluations, sample by sample, that this matrix takes at least: to check that the loss is the
#: mean over the samples, and that the matrix is the outer part's.
LEAST_EVALUATIONS = 16
#: Rows of the outer part's smaller matrix that are tried.
MAX_ROWS = 5000


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of the Hessian at one set of weights."""

    parts: dict[Part, RankEstimate]
    """``"total"`` always; the others where the network's output is known."""
    layers: dict[str, RankEstimate] = field(default_factory=dict)
    """Of each layer's diagonal block, where they were asked for."""
    loss: float = math.nan
    """Mean loss on the reference data."""
    num_samples: int | None = None
    """Samples behind them, of all processes."""
    unexplained: float = 0.0
    """Share of the Hessian that does not pass through the network's output."""
    plan: Plan | None = None
    """What was decided for the run, where there is a time budget."""
    notes: tuple[str, ...] = ()
    """What a reader should be told of these numbers."""
    norms: Mapping[tuple[str, str], Norm] = field(default_factory=dict)
    """Frobenius norms of the blocks between two layers, where they were asked for."""

    @property
    def total(self) -> RankEstimate:
        """Of the Hessian itself."""
        return self.parts["total"]


def planned(
    subject: Subject,
    processes: Processes,
    max_seconds: float,
    *,
    rtol: float | None,
    bound: RankBound | None,
    max_rank: int | None,
) -> Plan:
    """Decide, on the first process for all, what a time budget buys; see :mod:`.budget`."""
    memory = min(processes.gather(memory_limit(subject.device)))
    make = partial(
        make_plan,
        subject,
        max_seconds=max_seconds,
        memory=memory,
        rtol=rtol,
        bound=bound,
        max_rank=max_rank,
    )
    with undisturbed():
        try:
            with missing_derivatives_named():
                plan = make()
        except NoSecondDerivativeError as error:
            subject.once_only = error.operation
            plan = make()
    return processes.first(plan)


class _OutOfTimeError(Exception):
    """A part takes longer than its share of the budget."""


class _Due:
    """Progress that passes reports on, and ends work at a deadline."""

    def __init__(self, progress: Progress | None, deadline: float) -> None:
        self._progress, self._deadline = progress, deadline
        self._began = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)
        now = time.perf_counter()
        end = now if done < 0.1 * total else self._began + (now - self._began) * total / done
        if done < total and max(now, end - 0.1 * (end - now)) > self._deadline:
            raise _OutOfTimeError


def estimates(
    subject: Subject,
    plan: Plan,
    *,
    rtol: float | None,
    parts: Sequence[Part] | None,
    processes: Processes,
    verify: bool,
    seed: int,
    progress: Progress | None,
    announce: Callable[[str], None] | None,
    deadline: float | None,
    notes: list[str],
) -> Ranks:
    """Measure what a plan asks for, the outer part exactly where it has a small matrix.

    A part that fails costs only itself. Arguments as of :func:`lightning_hessrank.measure.measure`.

    Raises:
        NonFiniteError: the loss or a Hessian is not finite, on any process.
        WrongProductError, UnresolvedError: see there.
    """
    began = time.perf_counter()
    left = math.inf if deadline is None else deadline - began
    if plan.num_samples is not None:
        subject = _first(subject, plan.num_samples, processes)

    def due(part: Part) -> float:
        return began + DUE[part] * left

    few = _first(subject, PROBE_SAMPLES, processes)
    with opened(
        few, processes, verify=verify, seed=seed, differences=True, announce=announce
    ) as curvature:
        known, unexplained = explained(curvature, few, processes, parts, seed=seed)
    subject.once_only = few.once_only
    wanted = tuple(parts or (PARTS if known else PARTS[:1]))
    found: dict[Part, RankEstimate] = {}
    with opened(subject, processes, verify=False, seed=seed, differences=True) as curvature:
        loss = sum(processes.gather(curvature.loss))
        resolution = resolution_of(curvature, processes)
        # Without a tolerance the finest is told that is resolved, unless the error allows none.
        rtol = rtol if rtol is None and resolution < 1 else resolved(rtol, resolution)
        if "outer" in wanted and processes.count == 1:
            outer = _outer(subject, curvature, rtol, progress, began + SMALLER_DUE * left)
            found |= {} if outer is None else {"outer": outer}
        part_estimates = _Estimates(plan, rtol, resolution, processes, seed, progress, notes)
        if plan.dtype == subject.dtype:
            for part in [x for x in DUE if x in wanted]:
                if part not in found:
                    found[part] = part_estimates(curvature, part, due(part))
    missing = [x for x in DUE if x in wanted and x not in found]
    if missing:
        single = subject.in_precision(plan.dtype)
        try:
            with opened(single, processes, verify=False, seed=seed) as curvature:
                for part in missing:
                    found[part] = part_estimates(curvature, part, due(part))
        finally:
            single.release()
    ordered = {part: found[part] for part in PARTS if part in found}
    total = ordered.get("total")
    if plan.headline is None and total is not None and not math.isnan(total.rank):
        plan = replace(plan, headline=total.rtol)
    return Ranks(
        ordered, {}, loss, subject.total_samples, unexplained, plan, (*subject.doubts, *notes)
    )


def _first(subject: Subject, samples: int, processes: Processes) -> Subject:
    """So many of the samples on each process; the mean is over those of all."""
    few = subject.first(samples)
    few.total_samples = sum(processes.gather(few.num_samples))
    return few


@dataclass(frozen=True)
class _Estimates:
    """Estimates part after part, and what to say of them."""

    plan: Plan
    rtol: float | None
    resolution: float
    """Smallest tolerance that the error of products allows."""
    processes: Processes
    seed: int
    progress: Progress | None
    notes: list[str] = field(default_factory=list)

    def __call__(self, curvature: AnyCurvature, part: Part, deadline: float) -> RankEstimate:
        operator = shared(curvature.operator(part), self.processes)
        try:
            estimate = estimate_rank(
                operator,
                method="lanczos",
                rtol=self.rtol,
                seed=self.seed,
                memory_limit=min(self.processes.gather(memory_limit(operator.device))),
                part=part,
                progress=self.progress,
                max_products=self.plan.products(part),
                deadline=None if self.processes.count > 1 else deadline,
            )
        except UnresolvedError as error:
            if error.partial is None:
                raise
            estimate = error.partial
        if self.resolution:
            estimate = by_differences(estimate, self.resolution)
        if part == "outer" and isinstance(curvature, LossCurvature):
            most = sum(self.processes.gather(_num_outputs(curvature)))
            estimate = replace(
                estimate,
                ranges={t: (low, min(high, most)) for t, (low, high) in estimate.ranges.items()},
            )
        return headlined(
            estimate, self.rtol or self.plan.headline, self.notes, resolution=self.resolution
        )


def headlined(
    estimate: RankEstimate, rtol: float | None, notes: list[str], *, resolution: float = 0.0
) -> RankEstimate:
    """Let the rank be the count at the tolerance of the run.

    Args:
        estimate: what was found.
        rtol: what was asked for, or settled by an earlier estimate of the run; ``None``: the finest
            that this one resolves.
        notes: where it is said that the count is not resolved, if it is not.
        resolution: smallest tolerance at which the error of the products allows a count.
    """
    counts = {**estimate.counts}
    if not math.isnan(estimate.rank) and estimate.rtol >= resolution:
        counts[estimate.rtol] = estimate.rank
    rtol = rtol or min(counts, default=max(estimate.rtol, resolution))
    if rtol == estimate.rtol and rtol in counts:
        return estimate
    if rtol not in counts:
        low, high = estimate.range_at(rtol)
        notes.append(
            f"the count of the {estimate.part} Hessian at rtol={rtol:.3g} is not resolved "
            f"within the budget (between {low:,} and {high:,} of {estimate.num_parameters:,});"
            " a larger max_seconds or a larger rtol helps"
        )
    return replace(
        estimate,
        rank=counts.get(rtol, math.nan),
        std_error=estimate.count_errors.get(rtol, 0.0) if rtol in counts else math.nan,
        rtol=rtol,
        tolerance=estimate.tolerance * rtol / estimate.rtol,
    )


def _outer(
    subject: Subject,
    curvature: AnyCurvature,
    rtol: float | None,
    progress: Progress | None,
    deadline: float,
) -> RankEstimate | None:
    """Find the outer part's spectrum exactly, if it has few rows and there is time for it.

    Sample by sample, so that the gradient of one sample is one pass through the graph of it alone;
    that the loss is the mean over the samples is checked by products. Of all at once, where a
    sample is no batch.
    """
    if not isinstance(curvature, LossCurvature) or not curvature.outputs_known:
        return None
    if _num_outputs(curvature) > MAX_ROWS * 1.2:
        return None
    operator = whole = curvature.operator("outer")
    singles = subject.one_by_one()
    if singles is not None:
        began = time.perf_counter()
        singles.evaluate(singles.batches[0])
        seconds = len(singles.batches) * (time.perf_counter() - began)
        if began + LEAST_EVALUATIONS * seconds > deadline:
            return None
        operator = LossCurvature(singles.loss_function()).operator("outer")
        vectors = random_vectors(whole.dim, torch.empty(0, dtype=whole.dtype, device=whole.device))
        if not agrees(_products(operator, vectors), _products(whole, vectors)):
            return None
    try:
        return smaller_rank(
            operator, rtol=rtol, max_rows=MAX_ROWS, part="outer", progress=_Due(progress, deadline)
        )
    except (_OutOfTimeError, MemoryError):
        return None


def _num_outputs(curvature: LossCurvature) -> int:
    """Numbers in the network's outputs for all samples, which the outer part's rank is at most."""
    return sum(x.numel() for _, graph in curvature.graphs() for x in graph.outputs)


def _products(operator: SymmetricOperator, vectors: torch.Tensor) -> torch.Tensor:
    return operator.matmat(vectors)
