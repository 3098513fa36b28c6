"""The figure of the spectrum over the steps of a run."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_hessrank.dashboard import figures
from lightning_hessrank.dashboard.tab.records import texts_of
from tests.dashboard import synthetic
from tests.dashboard.figures.drawing import decoded, texts


def test_density_figure_counts_what_was_measured() -> None:
    runs = [m for m, _ in synthetic.run(4)]
    history = [m.record() for m in runs]
    details = [texts_of(m)["detail"] for m in runs]
    figure = figures.density_figure(history, details)
    decoded(figure)
    for image, sign in zip(figure.axes[0].images, (1, -1), strict=True):
        cells = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), math.nan)
        counted = np.nansum(10**cells, axis=0)
        beyond = [int((m.total.eigenvalues * sign > m.total.tolerance).sum()) for m in runs]
        np.testing.assert_allclose(counted, beyond)
    cut = [math.log10(m.total.tolerance) for m in runs]
    above, below = (np.array(line.get_ydata()) for line in figure.axes[0].lines[-2:])
    np.testing.assert_allclose(above, -below)
    np.testing.assert_allclose(np.diff(above), np.diff(cut))


@pytest.mark.parametrize("count", [0, 1, 300])
def test_density_figure_at_extremes(count: int) -> None:
    one = synthetic.measurement(total=synthetic.dense(40, 0, noise=0.0))
    detail = texts_of(one)["detail"]
    history = [{**one.record(), "step": i} for i in range(count)]
    figure = figures.density_figure(history, [{**detail, "step": i} for i in range(count)])
    decoded(figure)
    assert ("no eigenvalues were measured yet" in texts(figure)) == (count == 0)
