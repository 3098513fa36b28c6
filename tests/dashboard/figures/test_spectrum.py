"""Figures of a spectrum say what it is, at every extreme."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lightning_hessrank.dashboard import figures
from lightning_hessrank.estimators.dense import spectrum_estimate
from tests.dashboard import synthetic
from tests.dashboard.figures.drawing import EXTREMES, SMALL_FIRST, decoded, lines, texts


@pytest.mark.parametrize("which", SMALL_FIRST)
def test_sorted_figure_at_extremes(which: str) -> None:
    estimate = EXTREMES[which]()
    bound = synthetic.bound(max(1, estimate.num_parameters // 2), estimate.num_parameters)
    figure = figures.sorted_figure(estimate, bound)
    assert decoded(figure).size == (672, 320)
    written = texts(figure)
    assert f"of {estimate.num_parameters:,} parameters" in written
    assert f"{estimate.method}, tolerance " in written
    if math.isnan(estimate.rank):
        assert "no rank: the loss or its Hessian was not finite" in written
    elif estimate.rank == 0:
        assert "all eigenvalues are zero" in written
    else:
        assert set(lines(figure, "rank")[:, 0]) == {estimate.rank}
        assert set(lines(figure, "bound")[:, 0]) == {bound.total}
        assert set(lines(figure, "tolerance")[:, 1]) == {estimate.rtol}
        assert f"bound {bound.total:,} (reference line)" in written


@pytest.mark.parametrize("which", SMALL_FIRST)
def test_spectrum_figure_at_extremes(which: str) -> None:
    estimate = EXTREMES[which]()
    if estimate.eigenvalues is None:
        with pytest.raises(ValueError, match="has no eigenvalues to draw; use 'dense'"):
            figures.spectrum_figure(estimate)
        return
    figure = figures.spectrum_figure(estimate)
    assert decoded(figure).size == (672, 320)
    values = estimate.eigenvalues
    positive = int((values > estimate.tolerance).sum())
    negative = int((values < -estimate.tolerance).sum())
    assert f"{positive:,} positive, {negative:,} negative eigenvalues" in texts(figure)
    # The bars themselves: what is right of the tolerance is what was counted, by sign.
    bars = [p for c in figure.axes[0].containers for p in c.patches]
    counted = [b for b in bars if b.get_x() >= estimate.tolerance * (1 - 1e-9)]
    if estimate.rank:
        assert sum(b.get_height() for b in counted if b.get_height() > 0) == positive
        assert sum(b.get_height() for b in counted if b.get_height() < 0) == -negative
        assert sum(abs(b.get_height()) for b in bars) == int((values != 0).sum())


def test_the_sorted_curve_is_the_spectrum() -> None:
    estimate = synthetic.dense(200, 120)
    figure = figures.sorted_figure(estimate)
    assert estimate.eigenvalues is not None
    size = estimate.eigenvalues.abs().sort(descending=True).values.numpy()
    above = np.array(figure.axes[0].lines[1].get_xydata())
    np.testing.assert_array_equal(above[:, 0], np.arange(1, 121))
    np.testing.assert_allclose(above[:, 1], size[:120] / size[0])


@pytest.mark.slow
def test_a_long_curve_is_thinned_but_not_at_the_cut() -> None:
    estimate = synthetic.huge()
    drawn = np.array(figures.sorted_figure(estimate).axes[0].lines[0].get_xydata())
    assert len(drawn) < 2000
    assert {1, 2, 3, 20_000, 20_001} <= set(drawn[:, 0])


def test_a_far_bound_makes_the_axis_logarithmic() -> None:
    assert figures.sorted_figure(synthetic.lanczos()).axes[0].get_xscale() == "linear"
    far = figures.sorted_figure(synthetic.lanczos(), synthetic.bound(90_000, 11_000_000))
    assert far.axes[0].get_xscale() == "log"


def test_an_estimate_is_drawn_with_its_interval() -> None:
    history = synthetic.run(4, stochastic=True, layers=0)[-1][1]
    figure = figures.history_figure(history)
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    low, high = history[0]["rank_lower"], history[0]["rank_upper"]
    assert low < 95.4 < high
    assert band[:, 1].min() == pytest.approx(low)
    assert band[:, 1].max() == pytest.approx(high)
    assert "95 % interval" in texts(figure)
    assert "bound 765, above (reference line)" in texts(figure)


def test_counts_of_zero_and_a_tolerance_of_zero() -> None:
    nothing = replace(synthetic.sketch(), rank=0, counts={1e-1: 0, 1e-3: 0})
    zero = nothing.plot(synthetic.bound(9))
    assert "Rank 0 of 21,888 parameters" in texts(zero)
    decoded(zero)
    exact = spectrum_estimate(
        synthetic.spectrum(50, 20), rtol=0.0, part="total", num_products=50, seconds=0.0
    )
    for figure in (exact.plot(), figures.spectrum_figure(exact)):
        decoded(figure)
        assert "tolerance 0 · max |λ|" in texts(figure)
