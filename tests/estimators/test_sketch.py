"""What a sketch tells at machine precision, and from its image at larger tolerances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_hessrank.estimators import (
    UnresolvedError,
    dense_rank,
    sketch_rank,
)
from lightning_hessrank.estimators.core import SketchCore
from lightning_hessrank.hessian import DenseOperator
from tests.estimators.planted import SPECTRA, planted, two_levels


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("error", [None, 0, 9, -5])
@pytest.mark.filterwarnings("ignore:(max_rank|the rank is too close)")
def test_sketch_agrees_with_dense_at_machine_precision_or_refuses(name: str, error: int) -> None:
    """Whatever ``max_rank`` claims; counts at larger tolerances too."""
    operator = SPECTRA[name][0]()
    dense = dense_rank(operator)
    max_rank = None if error is None else max(0, dense.rank + error)
    try:
        estimate = sketch_rank(operator, max_rank=max_rank, counts=True)
    except UnresolvedError:
        estimate = None
    if estimate is None:
        assert name == "gap of 12 decades"  # what lies beyond it is on both sides of the cut
        return
    assert (estimate.rank, estimate.counts) == (dense.rank, dense.counts)
    assert estimate.tolerance == pytest.approx(dense.tolerance, rel=1e-9)


SLOW_DECAY = torch.logspace(0, -8.5, 80, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("max_rank", [None, 80, 120])
@pytest.mark.parametrize("indefinite", [False, True])
def test_sketch_counts_at_every_tolerance_if_asked(indefinite: bool, max_rank: int | None) -> None:
    """From the image that it has: without another product but the two that check it."""
    signs = torch.ones(80, dtype=torch.float64)
    signs[1::2] = -1.0 if indefinite else 1.0
    for seed in range(5):
        operator = planted(SLOW_DECAY * signs, 600, seed=seed)
        dense = dense_rank(operator)
        plain = sketch_rank(operator, max_rank=max_rank, seed=seed)
        counted = sketch_rank(operator, max_rank=max_rank, seed=seed, counts=True)
        assert plain.counts == {}
        assert counted.counts == dense.counts
        assert counted.rank == plain.rank == dense.rank
        assert counted.tolerance == pytest.approx(dense.tolerance, rel=1e-9)
        size = {None: 144, 80: 88, 120: 128}[max_rank]
        assert counted.num_products == size + 2


def test_spectrum_of_a_sketch_is_that_of_the_matrix_to_its_error() -> None:
    operator = planted(SLOW_DECAY, 600)
    core = SketchCore(operator, 3, 2**30, keep_image=True)
    core.grow(64)
    core.grow(88)
    found, error = core.spectrum(80)
    exact = torch.linalg.eigvalsh(operator.matrix)[-88:].clamp_min(0)
    assert float((found - exact).abs().max()) <= 3 * error < 1e-10
    short, error = core.spectrum(40)  # too small a rank: the error says so
    assert error > 1e-6
    assert float((short - exact).abs().max()) <= 3 * error


def test_sketch_tells_no_counts_where_its_image_does_not_fit_or_is_wrong(monkeypatch) -> None:
    operator = planted(SLOW_DECAY, 1500)
    image = 1500 * 8 * 88
    assert sketch_rank(operator, max_rank=80, memory_limit=20 * image, counts=True).counts
    assert not sketch_rank(operator, max_rank=80, memory_limit=2 * image, counts=True).counts
    true = SketchCore.spectrum
    monkeypatch.setattr(SketchCore, "spectrum", lambda self, rank: (true(self, rank)[0], 2e-5))
    found = sketch_rank(operator, max_rank=80, counts=True).counts
    assert list(found) == [1e-1, 1e-2, 1e-3]  # the others are not ten times the error


class Sketched(DenseOperator):
    def matmat(self, vectors: Tensor) -> Tensor:
        if vectors.shape[1] > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return super().matmat(vectors)


def test_products_that_check_a_sketch_shrink_too() -> None:
    matrix = torch.zeros(200, 200, dtype=torch.float64)
    matrix.fill_diagonal_(1.0)[20:] = 0
    operator = Sketched(matrix)
    assert sketch_rank(operator, max_rank=20, counts=True).counts[1e-1] == 20


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
