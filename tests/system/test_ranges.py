"""What an estimate says where it does not know: ranges, intervals, partial results, measures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_hessrank.estimators import (
    UnresolvedError,
    dense_rank,
    estimate_rank,
    lanczos_rank,
    smaller_rank,
)
from lightning_hessrank.hessian import DenseOperator, LossCurvature
from tests.estimators.planted import SPECTRA, planted
from tests.networks import Problem

DECAYING = torch.logspace(0, -6, 500, dtype=torch.float64)
INDEFINITE = DECAYING * torch.where(torch.arange(500) % 3 > 0, 1.0, -1.0)


@pytest.mark.parametrize("values", [DECAYING, INDEFINITE, torch.linspace(0.05, 1, 300)])
@pytest.mark.parametrize("products", [40, 96, 160])
def test_ranges_contain_the_count_and_intervals_cover_it(values: Tensor, products: int) -> None:
    """A sample of ``tests.benchmarks.coverage``."""
    operator = planted(values)
    dense = dense_rank(operator)
    covered = resolved = 0
    for seed in range(10):
        try:
            estimate = lanczos_rank(operator, rtol=1e-2, seed=seed, max_products=products)
            low, high = estimate.interval
            covered += low <= dense.rank_at(1e-2) <= high
            resolved += 1
        except UnresolvedError as error:
            estimate = error.partial
            assert math.isnan(estimate.rank)
        for rtol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            lower, upper = estimate.range_at(rtol)
            assert lower <= dense.rank_at(rtol) <= upper
    assert covered >= 0.8 * resolved


def test_a_partial_result_keeps_what_is_resolved() -> None:
    operator = planted(torch.logspace(0, -12, 600))
    dense = dense_rank(operator)
    with pytest.raises(UnresolvedError) as caught:
        lanczos_rank(operator, rtol=1e-11, max_products=160, part="outer")
    partial = caught.value.partial
    assert (partial.part, partial.num_products, partial.rtol) == ("outer", 160, 1e-11)
    assert math.isnan(partial.rank)
    assert partial.counts[1e-1] == dense.rank_at(1e-1) == partial.range_at(1e-1)[0]
    assert partial.range_at(1e-1)[1] == partial.range_at(1e-1)[0]
    lower, upper = partial.range_at(1e-11)
    assert 0 < lower <= dense.rank_at(1e-11) <= upper <= 600


def test_ranges_where_nothing_is_known() -> None:
    operator = planted(torch.ones(150), 400)
    with pytest.raises(UnresolvedError) as caught:
        lanczos_rank(operator, max_products=40)
    lower, upper = caught.value.partial.range_at(1e-3)
    assert 40 <= lower <= 150
    assert upper == 400
    assert caught.value.partial.range_at(0.123) == (0, 400)
    with pytest.raises(ValueError, match=r"^rtol must be a number in "):
        caught.value.partial.range_at(2.0)


def test_range_of_an_exact_result_is_its_count() -> None:
    dense = dense_rank(planted(DECAYING))
    assert dense.range_at(1e-3) == (dense.rank_at(1e-3), dense.rank_at(1e-3))


@pytest.mark.parametrize("name", SPECTRA)
def test_measures_of_every_planted_spectrum(name: str) -> None:
    operator = SPECTRA[name][0]()
    dense = dense_rank(operator)
    values = torch.linalg.eigvalsh(operator.matrix)
    norm = float(torch.linalg.matrix_norm(operator.matrix))
    assert dense.largest == pytest.approx(float(values.max()))
    assert dense.smallest == pytest.approx(float(values.min()))
    assert dense.trace == pytest.approx(float(operator.matrix.trace()), rel=1e-12, abs=1e-13 * norm)
    assert dense.frobenius_norm == pytest.approx(norm)
    assert dense.standard_errors == {}
    found = lanczos_rank(operator)
    for field in ("largest", "smallest", "trace", "frobenius_norm"):
        error = found.standard_errors[field]
        assert abs(getattr(found, field) - getattr(dense, field)) <= 5 * error + 1e-9 * norm, field


def test_trace_and_norm_have_the_errors_that_they_say() -> None:
    operator = planted(INDEFINITE)
    dense = dense_rank(operator)
    within = {"trace": 0, "frobenius_norm": 0}
    for seed in range(30):
        found = lanczos_rank(operator, rtol=1e-1, seed=seed)
        assert found.largest == pytest.approx(dense.largest, rel=1e-6)
        assert found.smallest == pytest.approx(dense.smallest, rel=1e-6)
        for field in within:
            error = abs(getattr(found, field) - getattr(dense, field))
            assert 0 < found.standard_errors[field] < 0.2 * dense.frobenius_norm
            within[field] += error <= 2.365 * found.standard_errors[field]
    assert min(within.values()) >= 25


@pytest.mark.parametrize("name", ["mlp", "cnn", "batch norm", "tied"])
def test_outer_part_is_exact_at_every_tolerance_from_its_smaller_matrix(name: str) -> None:
    problem = Problem(name, sizes=(2, 3))
    operator = LossCurvature(problem.function()).operator("outer")
    dense = dense_rank(DenseOperator(problem.oracle()["outer"]))
    found = smaller_rank(operator, part="outer")
    assert (found.rank, found.part, found.counts) == (dense.rank, "outer", dense.counts)
    assert len(found.eigenvalues) == operator.dim
    assert float((found.eigenvalues - dense.eigenvalues).abs().max()) < 1e-13 * dense.largest
    assert found.num_products == len(operator.smaller_matrix())
    assert smaller_rank(operator, max_rows=found.num_products - 1) is None
    assert smaller_rank(operator, memory_limit=32 * (found.num_products - 1) ** 2) is None
    assert smaller_rank(LossCurvature(problem.function()).operator("total")) is None


def test_auto_takes_the_smaller_matrix() -> None:
    operator = LossCurvature(Problem("mlp", sizes=(2, 3)).function()).operator("outer")
    found = estimate_rank(operator, part="outer", rtol=1e-3)
    assert (found.method, found.num_products) == ("dense", 10)
