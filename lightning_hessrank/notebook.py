"""How figures show themselves in a notebook, whatever ``%matplotlib`` is set to."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def shown(figure: Figure) -> Figure:
    """Return a figure that a notebook shows as a picture, as the last value of a cell.

    Figures that pyplot does not know have no picture there before ``%matplotlib inline``; with it,
    its own formatter comes first, so that the figure is never shown twice.
    """
    vars(figure)["_repr_png_"] = partial(_png, figure)
    return figure


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
