"""Figures of layers: ranks beside bounds, now and over time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lightning_hessrank.dashboard import figures
from lightning_hessrank.results import LayerRank
from tests.dashboard import synthetic
from tests.dashboard.figures.drawing import decoded, lines, texts


@pytest.mark.parametrize("count", [1, 2, 10, 60])
def test_layers_figure(count: int) -> None:
    layers = synthetic.layer_ranks(count)
    figure = figures.layers_figure(layers)
    assert decoded(figure).size == (672, 320)
    widths = [b.get_width() for b in figure.axes[0].containers[1].patches]
    expected = [x.rank / x.bound for x in layers.values() if x.bound]
    np.testing.assert_allclose(widths, expected)
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels[0] == "net.0"
    assert len(labels) <= 12
    assert len(set(labels)) == len(labels)


def test_layers_beyond_a_reference_line_failed_and_without_bound() -> None:
    layers = {
        "a": LayerRank(200, 300, 100),
        "b": LayerRank(math.nan, 9, 5),
        "c": LayerRank(0, 4, 0),
    }
    figure = figures.layers_figure(layers)
    written = texts(figure)
    assert "200 / 100" in written
    assert "nan / 5" in written
    assert figure.axes[0].get_xlim()[1] >= 2
    decoded(figure)
    unbounded = {name: replace(x, bound=None) for name, x in layers.items()}
    assert "rank / parameters" in texts(figures.layers_figure(unbounded))


@pytest.mark.parametrize(("steps", "count"), [(1, 2), (12, 6), (150, 60)])
def test_heat_map(steps: int, count: int) -> None:
    history = [
        {**r, "layers": {n: {"rank": 3 + i % 5, "num_parameters": 20, "bound": 10} for n in names}}
        for names in [[f"l{k}" for k in range(count)]]
        for i, r in enumerate([synthetic.measurement().record()] * steps)
    ]
    figure = figures.layers_over_time_figure(history)
    decoded(figure)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.shape == (count, min(steps, 120))
    assert shown[0, 0] == 0.3
    assert shown[-1, -1] == (3 + (steps - 1) % 5) / 10


def test_heat_map_with_gaps_and_other_layers() -> None:
    first, second = synthetic.measurement(0).record(), synthetic.measurement(5).record()
    second["layers"] = {"other": {"rank": 1, "num_parameters": 4, "bound": 4}}
    nothing = synthetic.failed(3).record()
    shown = figures.layers_over_time_figure([first, nothing, second]).axes[0].images[0].get_array()
    filled = np.ma.filled(np.ma.asarray(shown, dtype=float), math.nan)
    assert filled.shape == (3, 2)
    assert np.isnan(filled).tolist() == [[False, True], [False, True], [True, False]]
    assert "no layer was measured yet" in texts(figures.layers_over_time_figure([nothing]))


@pytest.mark.parametrize("layers", [1, 2, 60])
def test_bound_figure(layers: int) -> None:
    bound = synthetic.bound(layers=layers, is_theorem=True)
    figure = bound.plot()
    decoded(figure)
    assert lines(figure, "bound")[:, 0].tolist() == [x.functional for x in bound.layers]
    assert lines(figure, "parameters")[:, 0].tolist() == [x.num_parameters for x in bound.layers]
    assert "Bound 765 of 1,210 parameters" in texts(figure)
    assert "closed-form, theorem" in texts(figure)
    assert len(figure.axes[0].get_yticklabels()) == layers  # outside TensorBoard all have names


def test_bound_without_layers() -> None:
    assert "this bound has no split by layer" in texts(replace(synthetic.bound(), layers=()).plot())
