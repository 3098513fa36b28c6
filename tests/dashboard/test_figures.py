"""Figures say what the results say, at every extreme, and leave nothing behind."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot, rcParams
from matplotlib.figure import Figure
from PIL import Image

from lightning_hessrank.dashboard import figures
from lightning_hessrank.dashboard.figures import style
from lightning_hessrank.dashboard.tab.records import texts_of
from lightning_hessrank.estimators.dense import spectrum_estimate
from lightning_hessrank.results import LayerRank, RankEstimate
from tests.dashboard import synthetic

EXTREMES: dict[str, Callable[[], RankEstimate]] = {
    "usual": synthetic.dense,
    "three, full": lambda: synthetic.dense(3, 3),
    "three, zero": lambda: synthetic.dense(3, 0, noise=0.0),
    "exactly zero below": lambda: synthetic.dense(30, 7, noise=0.0),
    "full rank": lambda: synthetic.dense(500, 500, decades=12),
    "one": lambda: synthetic.dense(1, 1),
    "ten millions": synthetic.huge,
    "sketch": synthetic.sketch,
    "stochastic": synthetic.lanczos,
    "failed": lambda: synthetic.failed().total,
}


def texts(figure: Figure) -> str:
    """Everything that is written on a figure."""
    from matplotlib.text import Text

    return "\n".join(t.get_text() for t in figure.findobj(Text) if t.get_text())


def lines(figure: Figure, label: str) -> np.ndarray[Any, Any]:
    """Data of the line with this label, shape (n, 2)."""
    drawn = [x for axes in figure.axes for x in axes.lines]
    found = [x for x in drawn if str(x.get_label()).startswith(label)]
    assert len(found) == 1
    return np.array(found[0].get_xydata())


def decoded(figure: Figure) -> Image.Image:
    data, *size = figures.png(figure)
    image = Image.open(io.BytesIO(data))
    assert image.size == tuple(size)
    return image.convert("RGB")


@pytest.mark.parametrize("which", EXTREMES)
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


@pytest.mark.parametrize("which", EXTREMES)
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


def test_a_long_curve_is_thinned_but_not_at_the_cut() -> None:
    estimate = synthetic.huge()
    drawn = np.array(figures.sorted_figure(estimate).axes[0].lines[0].get_xydata())
    assert len(drawn) < 2000
    assert {1, 2, 3, 20_000, 20_001} <= set(drawn[:, 0])


def test_a_far_bound_makes_the_axis_logarithmic() -> None:
    assert figures.sorted_figure(synthetic.lanczos()).axes[0].get_xscale() == "linear"
    far = figures.sorted_figure(synthetic.lanczos(), synthetic.bound(90_000, 11_000_000))
    assert far.axes[0].get_xscale() == "log"


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


def test_history_figure_draws_the_record() -> None:
    history = synthetic.run(5)[-1][1]
    figure = figures.history_figure(history)
    for label, values in (
        ("rank", [r["rank"] for r in history]),
        ("at 1e-3", [r["counts"][1e-3] for r in history]),
        ("at 1e-1", [r["counts"][1e-1] for r in history]),
        ("bound (reference line)", [765] * 5),
    ):
        assert lines(figure, label)[:, 1].tolist() == values
        assert lines(figure, label)[:, 0].tolist() == [r["step"] for r in history]
    assert f"Rank 747 → {history[-1]['rank']} of 1,210 parameters" in texts(figure)


def test_history_figure_at_extremes() -> None:
    history = synthetic.run(3)[-1][1]
    gap = [history[0], synthetic.failed(7).record(), history[2]]
    zero = [{**r, "rank": 0, "counts": dict.fromkeys(r["counts"], 0)} for r in history]
    for records in ([], history[:1], gap, zero, [synthetic.failed().record()], history * 20):
        decoded(figures.history_figure(records))
    assert "no measurement yet" in texts(figures.history_figure([]))
    assert math.isnan(lines(figures.history_figure(gap), "rank")[1, 1])


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


def test_plot_methods_return_figures() -> None:
    estimate: RankEstimate = synthetic.dense()
    assert isinstance(estimate.plot(), Figure)
    assert "bound 765" in texts(estimate.plot(synthetic.bound()))


def test_pyplot_and_the_users_style_are_left_alone() -> None:
    with pyplot.style.context("dark_background"):
        before = dict(rcParams)
        dark = decoded(synthetic.dense().plot(synthetic.bound()))
        assert dict(rcParams) == before
    assert pyplot.get_fignums() == []
    light = decoded(synthetic.dense().plot(synthetic.bound()))
    assert np.array_equal(np.asarray(dark), np.asarray(light))
    assert dark.getpixel((2, 2)) == (255, 255, 255)  # opaque, for dark pages


def test_the_palette_keeps_every_meaning_apart() -> None:
    """Also a dot of a colour survives, and no two meanings look alike to a colour-blind reader."""
    image = decoded(figures.history_figure(synthetic.run(1)[-1][1]))
    colours = {colour for _, colour in image.getcolors(10**6) or []}
    meanings = [style.RANK, style.OUTER, style.NEGATIVE, style.BOUND]
    rgb = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in meanings]
    assert set(rgb) <= colours
    # Deuteranopia after Viénot, Brettel and Mollon (1999), on linear light.
    matrix = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    seen = matrix @ (np.array(rgb).T / 255) ** 2.2
    distances = [np.linalg.norm(seen[:, i] - seen[:, j]) for i in range(len(rgb)) for j in range(i)]
    assert min(distances) > 0.1


def test_short_names() -> None:
    assert style.short_names(["net.0", "net.2"]) == ["net.0", "net.2"]
    long = [f"encoder.transformer.blocks.{i}.attention.query" for i in (0, 11)]
    assert style.short_names(long) == ["blocks.0", "blocks.11"]
    cut = style.short_names(["a" * 40, "b" * 40])
    assert all(len(name) == 18 and "…" in name for name in cut)
    assert style.short_names(["x" * 30]) == [f"{'x' * 6}…{'x' * 11}"]
    assert style.short_names([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (1210, "1.21k"), (2.5e6, "2.5M"), (1e10, "10G"), (math.nan, "nan")],
)
def test_magnitude(value: float, text: str) -> None:
    assert style.magnitude(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.66e-13, "2.7e-13"), (1.04e10, "1e10"), (12.0, "12"), (0.1, "0.1")]
)
def test_scientific(value: float, text: str) -> None:
    assert style.scientific(value) == text


def test_matplotlib_and_the_event_writer_are_imported_only_to_draw_and_write() -> None:
    code = (
        "import sys, torch; import lightning_hessrank.dashboard, lightning_hessrank.results;"
        "print([m for m in ('matplotlib', 'tensorboard', 'pytorch_lightning') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() in ("[]", "['pytorch_lightning']")  # the package's own start page


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (1e-12, "1e-12"), (1e3, "1e3"), (0.0, "0")]
)
def test_power(value: float, text: str) -> None:
    assert style.power(value) == text
