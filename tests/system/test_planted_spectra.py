"""Every method on every planted spectrum."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from lightning_hessrank.estimators import (
    dense_rank,
    estimate_rank,
    lanczos_rank,
    sketch_rank,
)
from lightning_hessrank.results import RankEstimate
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
