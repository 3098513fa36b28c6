"""Figures say what the results say, at every extreme, and leave nothing behind."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot, rcParams
from matplotlib.figure import Figure

from lightning_hessrank.dashboard import figures
from lightning_hessrank.dashboard.figures import style
from lightning_hessrank.results import RankEstimate
from tests.dashboard import synthetic
from tests.dashboard.figures.drawing import decoded, texts


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


@pytest.mark.slow
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
