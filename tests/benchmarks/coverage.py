"""Are the intervals honest where they are not trivial: ``python -m tests.benchmarks.coverage``.

Spectra without exact resolution: lanczos is given half of the products that would certify the
count, for 100 seeds. The 95 % interval, where there is one, has to cover the dense count in at
least 90 of 100, and the range always.
"""

from __future__ import annotations

import argparse
import statistics
from typing import NamedTuple

import torch

from lightning_hessrank.estimators import UnresolvedError, dense_rank, lanczos_rank
from lightning_hessrank.hessian import DenseOperator
from tests.benchmarks import subjects
from tests.benchmarks.engine import table
from tests.estimators.planted import planted

#: name -> (operator, tolerances)
CASES = {
    "flat": (lambda: planted(torch.linspace(0.05, 1, 400), 800), (1e-1,)),
    "decaying": (lambda: planted(torch.logspace(0, -6, 800)), (1e-2, 1e-3)),
    "indefinite": (
        lambda: planted(
            torch.logspace(0, -5, 800) * torch.where(torch.arange(800) % 3 > 0, 1.0, -1.0)
        ),
        (1e-2,),
    ),
    "untrained CNN": (lambda: DenseOperator(_hessian(subjects.cnn((4, 6)))), (1e-2, 1e-3)),
    "untrained MLP": (lambda: DenseOperator(_hessian(subjects.mlp((64, 16, 10)))), (1e-2, 1e-3)),
}


def _hessian(subject: subjects.Subject) -> torch.Tensor:
    return subject.curvature().operator().to_dense()


class Coverage(NamedTuple):
    """What some seeds gave for one spectrum and tolerance."""

    count: int
    """From all eigenvalues."""
    products: int
    """Half of those that certify it."""
    resolved: int
    """Seeds with an estimate."""
    covered: int
    """Of these, with the count in their interval."""
    contained: int
    """Of all seeds, with the count in their range."""
    half_width: float
    """Median over the intervals, relative to the count."""
    range_width: float
    """Median width of the ranges, relative to the count."""


def coverage(operator: DenseOperator, rtol: float, seeds: int) -> Coverage:
    """Estimate with half of the products that certify, once for each seed."""
    count = int(dense_rank(operator).rank_at(rtol))
    products = lanczos_rank(operator, rtol=rtol, max_products=operator.dim).num_products // 2
    intervals, ranges = [], []
    for seed in range(seeds):
        try:
            estimate = lanczos_rank(operator, rtol=rtol, seed=seed, max_products=products)
            intervals.append(estimate.interval)
        except UnresolvedError as error:
            estimate = error.partial
        ranges.append(estimate.range_at(rtol))
    widths = [(high - low) / 2 / count for low, high in intervals] or [float("nan")]
    return Coverage(
        count,
        products,
        len(intervals),
        sum(low <= count <= high for low, high in intervals),
        sum(low <= count <= high for low, high in ranges),
        statistics.median(widths),
        statistics.median((high - low) / count for low, high in ranges),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    arguments = parser.parse_args()
    rows = [("spectrum", "rtol", *Coverage._fields)]
    for name, (build, tolerances) in CASES.items():
        operator = build()
        for rtol in tolerances:
            found = coverage(operator, rtol, arguments.seeds)
            rows.append((name, f"{rtol:.0e}", *(f"{x:.3g}" for x in found)))
    table(rows)


if __name__ == "__main__":
    main()
