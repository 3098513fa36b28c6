"""What is drawn on a figure, read back; estimates at every extreme."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lightning_hessrank.dashboard import figures
from lightning_hessrank.results import RankEstimate
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


#: The largest one is slow.
SMALL_FIRST = [
    pytest.param(x, marks=pytest.mark.slow) if x == "ten millions" else x for x in EXTREMES
]


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
