"""Lanczos: what it resolves exactly, what it estimates, what it refuses."""

from __future__ import annotations

import pytest
import torch

from lightning_hessrank.estimators import (
    UnresolvedError,
    dense_rank,
    lanczos_rank,
)
from lightning_hessrank.results import t_quantile
from tests.estimators.planted import planted


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
