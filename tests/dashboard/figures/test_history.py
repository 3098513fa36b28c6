"""The figure of a run."""

from __future__ import annotations

import math

import pytest

from lightning_hessrank.dashboard import figures
from tests.dashboard import synthetic
from tests.dashboard.figures.drawing import decoded, lines, texts


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


@pytest.mark.slow
def test_history_figure_at_extremes() -> None:
    history = synthetic.run(3)[-1][1]
    gap = [history[0], synthetic.failed(7).record(), history[2]]
    zero = [{**r, "rank": 0, "counts": dict.fromkeys(r["counts"], 0)} for r in history]
    for records in ([], history[:1], gap, zero, [synthetic.failed().record()], history * 20):
        decoded(figures.history_figure(records))
    assert "no measurement yet" in texts(figures.history_figure([]))
    assert math.isnan(lines(figures.history_figure(gap), "rank")[1, 1])
