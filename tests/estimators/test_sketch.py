"""What a sketch tells at machine precision, and from its image at larger tolerances."""

from __future__ import annotations

import pytest
import torch

from lightning_hessrank.estimators import UnresolvedError, dense_rank, sketch_rank
from lightning_hessrank.estimators.core import SketchCore
from tests.estimators.planted import SPECTRA, planted


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
