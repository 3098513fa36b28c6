"""Every method on every planted spectrum."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from lightning_hessrank.estimators import (
    UnresolvedError,
    dense_rank,
    estimate_rank,
    lanczos_rank,
    sketch_rank,
)
from lightning_hessrank.results import RankEstimate, t_quantile
from tests.estimators.planted import SPECTRA, planted, two_levels

METHODS = {"dense": dense_rank, "sketch": sketch_rank, "lanczos": lanczos_rank}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", METHODS)
def test_count_beyond_a_tolerance(method: str, name: str) -> None:
    build, rtol, count = SPECTRA[name]
    operator = build()
    estimate = METHODS[method](operator, rtol=rtol)
    assert estimate.rank == count
    assert estimate.std_error == 0
    assert estimate.method == method
    assert isinstance(estimate.rank, float if method == "lanczos" else int)
    largest = float(torch.linalg.eigvalsh(operator.matrix).abs().max())
    assert estimate.tolerance == pytest.approx(rtol * largest, rel=1e-2)
    exact = dense_rank(operator)
    for at, known in estimate.counts.items():
        if not estimate.count_errors.get(at):
            assert known == exact.rank_at(at)


@pytest.mark.parametrize(
    ("values", "dim"),
    [
        (torch.linspace(1, 2, 7), 300),
        (torch.cat([torch.logspace(0, -5, 20), -torch.logspace(0, -4, 30)]), 300),
        (torch.ones(25), 200),
        (torch.zeros(1), 100),
    ],
)
@pytest.mark.parametrize("max_rank", [None, 80])
def test_sketch_finds_the_rank_at_machine_precision(values, dim, max_rank) -> None:
    operator = planted(values, dim)
    estimate = sketch_rank(operator, max_rank=max_rank)
    dense = dense_rank(operator)
    assert (estimate.rank, estimate.rtol, estimate.method) == (dense.rank, dense.rtol, "sketch")
    assert estimate.tolerance == pytest.approx(dense.tolerance, rel=0.02)
    if dense.rank:
        assert estimate.gap > 1e6
    else:
        assert estimate.gap is None
    assert estimate.num_products < dim


@pytest.mark.parametrize("columns_beyond_rank", [1, 2, 8])
def test_sketch_has_the_rank_from_a_few_columns_beyond_it(columns_beyond_rank: int) -> None:
    for seed in range(20):
        operator = planted(two_levels(0, 15), 300, seed=seed)
        core = sketch_rank(operator, max_rank=40 + columns_beyond_rank - 1, seed=seed)
        assert core.rank == 40


@pytest.mark.parametrize("claimed", [0, 3, 12, 24, 49])
def test_wrong_max_rank_is_noticed_and_said(claimed: int) -> None:
    operator = planted(torch.linspace(-2, -1, 50), 400)
    with pytest.warns(RuntimeWarning) as caught:
        estimate = sketch_rank(operator, max_rank=claimed)
    assert (estimate.rank, estimate.method) == (50, "sketch")
    assert [str(w.message) for w in caught] == [
        f"max_rank={claimed} does not hold: the rank is 50; the sketch was grown"
    ]


def test_wrong_max_rank_is_noticed_by_the_range_too() -> None:
    with pytest.warns(RuntimeWarning, match=r"^max_rank=24 does not hold: the rank is 25"):
        assert sketch_rank(planted(two_levels(2, 175)), rtol=1e-2, max_rank=24).rank == 25


def test_sketch_of_full_rank_becomes_dense_and_says_so() -> None:
    operator = planted(torch.linspace(1, 2, 90))
    with pytest.warns(RuntimeWarning) as caught:
        estimate = sketch_rank(operator, max_rank=10)
    assert (estimate.rank, estimate.method) == (90, "dense")
    assert [str(w.message) for w in caught] == [
        "the rank is too close to the dimension, or the gap at it too small, for a sketch with "
        "max_rank=10 to pay; measured by method='dense' instead"
    ]
    with pytest.warns(RuntimeWarning, match=r"too small, for a sketch to pay"):
        assert sketch_rank(operator).rank == 90


def test_sketch_without_a_gap_counts_from_a_basis_of_the_range() -> None:
    """A spectrum that falls by a third of a decade a step, across the cut: the core has no gap."""
    values = torch.cat([torch.logspace(0, -20, 60), torch.zeros(740)])
    operator = planted(values)
    dense = dense_rank(operator)
    assert dense.gap < 10
    estimate = sketch_rank(operator, max_rank=60)
    assert (estimate.rank, estimate.method) == (dense.rank, "sketch")
    assert estimate.num_products == 3 * 68
    assert estimate.gap == pytest.approx(dense.gap, rel=0.5)
    assert estimate.counts == dense.counts


def test_sketch_without_a_gap_is_dense_where_that_is_less_work() -> None:
    operator = planted(torch.logspace(0, -20, 160), 400)
    with pytest.warns(RuntimeWarning, match=r"with max_rank=300 to pay; measured by method='dense"):
        estimate = sketch_rank(operator, max_rank=300)
    assert (estimate.rank, estimate.method) == (dense_rank(operator).rank, "dense")


def test_biased_core_is_not_what_counts_where_there_is_no_gap() -> None:
    """The core alone counts wrongly here; the range basis does not."""
    operator = planted(torch.logspace(0, -7.9, 400))
    generator = torch.Generator().manual_seed(0)
    omega = torch.randn(400, 200, generator=generator, dtype=torch.float64)
    values = torch.linalg.eigvalsh(omega.T @ operator.matrix @ omega).abs()
    dense = dense_rank(operator).rank_at(1e-3)
    assert int((values > 1e-3 * values.max()).sum()) != dense
    assert sketch_rank(operator, rtol=1e-3).rank == dense


@pytest.mark.slow
def test_lanczos_estimates_what_its_subspace_cannot_resolve() -> None:
    operator = planted(torch.logspace(0, -6, 600))
    exact = dense_rank(operator).rank_at(1e-3)
    covered, widths = 0, []
    for seed in range(20):
        estimate = lanczos_rank(operator, rtol=1e-3, seed=seed, max_products=320)
        assert estimate.std_error > 0
        assert estimate.num_probes == 8
        low, high = estimate.interval
        covered += low <= exact <= high
        widths.append((high - low) / 2)
    assert covered >= 18
    assert sorted(widths)[10] <= 0.25 * exact


def test_lanczos_refuses_a_tolerance_that_it_cannot_resolve() -> None:
    operator = planted(torch.logspace(0, -12, 600))
    with pytest.raises(UnresolvedError) as caught:
        lanczos_rank(operator, rtol=1e-11, max_products=160)
    text = str(caught.value)
    assert text.startswith("lanczos cannot resolve rtol=1e-11 with 160 products: ")
    assert "it resolves rtol=1e-0" in text
    assert text.endswith("pass a larger rtol or more max_products, or use method='dense'")


def test_lanczos_counts_at_coarser_tolerances_are_exact_and_finer_ones_not_invented() -> None:
    operator = planted(torch.logspace(0, -12, 600))
    estimate = lanczos_rank(operator, rtol=1e-2, max_products=300)
    dense = dense_rank(operator)
    assert estimate.counts[1e-1] == dense.rank_at(1e-1)
    assert estimate.rank_at(1e-1) == dense.rank_at(1e-1)
    assert estimate.count_errors[1e-1] == 0
    assert 1e-6 not in estimate.counts
    with pytest.raises(ValueError, match=r"^the lanczos method knows the count at rtol "):
        estimate.rank_at(1e-6)


@pytest.mark.parametrize("method", ["dense", "sketch", "lanczos"])
def test_same_seed_same_result_and_global_generator_untouched(method: str) -> None:
    operator = planted(two_levels(2, 175))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    results = [estimate_rank(operator, method=method, rtol=1e-2, seed=s) for s in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    a, b, other = (_comparable(x) for x in results)
    assert a == b
    if method == "lanczos":
        assert a != other  # the seed has an effect


def _comparable(estimate: RankEstimate) -> tuple[object, ...]:
    return (estimate.rank, estimate.std_error, estimate.tolerance, estimate.num_products)


@pytest.mark.parametrize("method", ["dense", "sketch", "lanczos"])
def test_progress_is_reported_and_can_stop(method: str) -> None:
    operator = planted(two_levels(2, 175))
    calls: list[tuple[int, int]] = []
    estimate_rank(operator, method=method, rtol=1e-2, progress=lambda *x: calls.append(x))
    if method != "dense":  # a matrix at hand needs no products
        assert len(calls) > 1
        assert all(0 <= done <= total <= 200 for done, total in calls)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    if method != "dense":
        with pytest.raises(KeyboardInterrupt):
            estimate_rank(operator, method=method, rtol=1e-2, progress=interrupt)


def test_float32_counts_at_its_own_precision() -> None:
    operator = planted(two_levels(2, 0), 400)
    operator.matrix = operator.matrix.float()
    operator.dtype = torch.float32
    dense = dense_rank(operator)
    assert dense.rank == 25
    assert dense.rtol == pytest.approx(400 * torch.finfo(torch.float32).eps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sketch_rank(operator).rank == 25
    assert lanczos_rank(operator).rank == 25


def test_arguments_that_make_no_sense() -> None:
    operator = planted(torch.ones(3))
    with pytest.raises(ValueError, match=r"^num_probes must be at least 2 .a standard error needs"):
        lanczos_rank(operator, num_probes=1)
    with pytest.raises(ValueError, match=r"^max_rank must be at least 0, got -1$"):
        sketch_rank(operator, max_rank=-1)
    with pytest.raises(ValueError, match=r"^method must be one of 'auto', 'dense', 'sketch', "):
        estimate_rank(operator, method="guess")  # type: ignore[arg-type]
    for method in METHODS.values():
        with pytest.raises(ValueError, match=r"^rtol must be a number in "):
            method(operator, rtol=math.nan)


def test_more_copies_of_an_eigenvalue_than_there_is_room_for_are_not_ignored() -> None:
    operator = planted(torch.ones(150), 400)
    with pytest.raises(UnresolvedError, match=r"^lanczos cannot resolve rtol=0\.001 with "):
        lanczos_rank(operator, max_products=40)
    assert lanczos_rank(operator).rank == 150


def test_tight_cluster_below_the_cut_is_not_mistaken_for_a_few_eigenvalues() -> None:
    """At a finer tolerance than asked for its Ritz values look converged; there are 300 of them."""
    cluster = 2e-3 * torch.linspace(1 - 1e-6, 1 + 1e-6, 300, dtype=torch.float64)
    top = torch.tensor([1.0, -0.9, 0.8, 0.7, 0.6], dtype=torch.float64)
    operator = planted(torch.cat([top, cluster]), 400)
    covered = 0
    for seed in range(20):
        estimate = lanczos_rank(operator, rtol=1e-1, seed=seed)
        assert (estimate.rank, estimate.std_error) == (5, 0)
        assert estimate.counts[1e-2] == 5
        error = estimate.count_errors[1e-3]
        assert error > 0
        covered += abs(estimate.counts[1e-3] - 305) <= t_quantile(8) * error
    assert covered >= 17
