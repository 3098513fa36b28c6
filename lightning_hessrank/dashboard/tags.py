"""The one place that maps a measurement to logged names.

Exact counts (dense, sketch) are ``NAME/rank`` and siblings; stochastic ones (lanczos) are
``NAME-estimate/rank`` with their interval (of layers, ``NAME-layers/estimate/LAYER``), and never
pose as the exact rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from lightning_hessrank.dashboard.tab.records import MACHINE, tolerance_label
from lightning_hessrank.results import Measurement, RankEstimate
from lightning_hessrank.tolerance import machine_rtol, numerical_rank


def scalars(measurement: Measurement, name: str = "hessian") -> dict[str, float]:
    """Flat logged names and values of a measurement.

    Args:
        measurement: what was found. What it lacks (bound, parts, layers, eigenvalues) has no name
            in the result; what it failed to find is nan.
        name: first part of every name.

    Returns:
        Plain floats: counts, dimensionless ratios, eigenvalues in units of the loss, seconds.
    """
    groups = (_ranks, _bounds, _tolerances, _layers, _spectrum, _measures, _data, _costs)
    return {tag: float(value) for group in groups for tag, value in group(measurement, name)}


def without_layers(values: Mapping[str, float], name: str) -> dict[str, float]:
    """Leave the layers' scalars out."""
    return {tag: x for tag, x in values.items() if not tag.startswith(f"{name}-layers/")}


def rank_tag(estimate: RankEstimate, name: str) -> str:
    """Name of the rank that this estimate found: of its own for a stochastic count."""
    group = name if is_exact(estimate) else f"{name}-estimate"
    return f"{group}/rank" if estimate.part == "total" else f"{group}/rank_{estimate.part}"


def is_exact(estimate: RankEstimate) -> bool:
    """Whether the method counts eigenvalues, rather than estimating how many there are."""
    return estimate.method != "lanczos"


def counts_by_label(estimate: RankEstimate) -> dict[str, float]:
    """Every count that the method knows, by tolerance label; machine precision last."""
    machine = machine_rtol(estimate.num_parameters)
    counts = {**estimate.counts, estimate.rtol: estimate.rank}
    labelled = {
        tolerance_label(t): float(counts[t])
        for t in sorted(counts, reverse=True)
        if t > machine * (1 + 1e-9)
    }
    at_machine = [t for t in counts if t <= machine * (1 + 1e-9)]
    if estimate.eigenvalues is not None:
        labelled[MACHINE] = numerical_rank(estimate.eigenvalues, machine).rank
    elif at_machine:
        labelled[MACHINE] = counts[max(at_machine)]
    return labelled


def _ranks(m: Measurement, name: str) -> Iterator[tuple[str, float]]:
    total = m.total
    for estimate in (total, m.outer, m.functional):
        if estimate is not None:
            yield rank_tag(estimate, name), estimate.rank
    if is_exact(total):
        if m.bound is not None:
            yield f"{name}/rank_over_bound", _ratio(total.rank, m.bound.total)
        yield f"{name}/rank_over_parameters", _ratio(total.rank, total.num_parameters)
    else:
        lower, upper = total.interval
        yield f"{name}-estimate/rank_lower", lower
        yield f"{name}-estimate/rank_upper", upper
    if m.batch_bound is not None:
        bound = m.batch_bound
        yield f"{name}/batch_bound", bound.total
        for part, value in (("outer", bound.outer), ("functional", bound.functional)):
            if value is not None:
                yield f"{name}/batch_bound_{part}", value


def _bounds(m: Measurement, name: str) -> Iterator[tuple[str, float]]:
    yield f"{name}-bound/parameters", m.total.num_parameters
    if m.bound is not None:
        yield f"{name}-bound/rank", m.bound.total
        for part, value in (("outer", m.bound.outer), ("functional", m.bound.functional)):
            if value is not None:
                yield f"{name}-bound/rank_{part}", value


def _tolerances(m: Measurement, name: str) -> Iterator[tuple[str, float]]:
    for label, count in counts_by_label(m.total).items():
        yield f"{name}-tolerance/rank_{label}", count


def _layers(m: Measurement, name: str) -> Iterator[tuple[str, float]]:
    exact = is_exact(m.total)  # all by the same method
    for layer, found in m.layers.items():
        if not exact:
            yield f"{name}-layers/estimate/{layer}", found.rank
            continue
        yield f"{name}-layers/rank/{layer}", found.rank
        if found.bound is not None:
            yield f"{name}-layers/rank_over_bound/{layer}", _ratio(found.rank, found.bound)
    for (a, b), (norm, _) in m.block_norms.items():
        yield f"{name}-layers/norm/{a}/{b}", norm


def _spectrum(m: Measurement, name: str) -> Iterator[tuple[str, float]]:
    total = m.total
    if total.eigenvalues is not None and len(total.eigenvalues):
        values = total.eigenvalues
        yield f"{name}-spectrum/lambda_max", float(values.max())
        yield f"{name}-spectrum/lambda_min", float(values.min())
        yield f"{name}-spectrum/n_positive", int((values > total.tolerance).sum())
        yield f"{name}-spectrum/n_negative", int((values < -total.tolerance).sum())
    if total.tolerance > 0:
        yield f"{name}-spectrum/log10_tolerance", math.log10(total.tolerance)
    if total.gap is not None and math.isfinite(total.gap):  # at full rank there is no gap
        yield f"{name}-spectrum/gap", total.gap


def _measures(m: Measurement, name: str) -> Iterator[tuple[str, float]]:
    for leaf, value in m.measures().items():
        yield f"{name}-measures/{leaf}", value


def _data(m: Measurement, name: str) -> Iterator[tuple[str, float]]:
    if math.isfinite(m.loss):
        yield f"{name}-data/loss", m.loss
    if m.num_samples is not None:
        yield f"{name}-data/samples", m.num_samples


def _costs(m: Measurement, name: str) -> Iterator[tuple[str, float]]:
    estimates = (m.total, m.outer, m.functional)
    yield f"{name}-time/seconds", m.seconds
    yield f"{name}-time/products", sum(e.num_products for e in estimates if e is not None)
    yield f"{name}-time/overhead", m.overhead
    yield f"{name}-time/skipped", m.skipped


def _ratio(count: float, of: float) -> float:
    return count / of if of else math.nan
