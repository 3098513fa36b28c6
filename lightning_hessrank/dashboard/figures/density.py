"""The figure of a spectrum over time: how many eigenvalues of each size and sign, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lightning_hessrank.dashboard.figures import style
from lightning_hessrank.dashboard.tab.records import BINS_PER_DECADE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Decades shown below the smallest tolerance: what is smaller still is rounding.
_BELOW = 3
#: More columns than this are thinned out.
_MAX_COLUMNS = 120

_Counts = npt.NDArray[np.float64]


def density_figure(
    history: Sequence[Mapping[str, Any]], details: Sequence[Mapping[str, Any]]
) -> Figure:
    """Draw a heat map of the spectrum over the steps: positive eigenvalues above, negative below.

    Args:
        history: ``monitor.history``, for the tolerance at each step.
        details: what the tab has of each measurement; those without a spectrum are left out.
    """
    tolerances = {record["step"]: record["tolerance"] for record in history}
    found = [x for x in details if "spectrum" in x and x["step"] in tolerances]
    stride = math.ceil(len(found) / _MAX_COLUMNS) or 1
    found = found[::-1][::stride][::-1]  # the last one stays
    with style.styled():
        figure, axes = style.card(
            "All eigenvalues over time",
            "log scale, both signs; between the dotted lines: below the tolerance",
            left=0.66,
            right=0.7,
            legend=False,
        )
        if not found:
            style.message(axes, "no eigenvalues were measured yet")
            return figure
        cut = np.array([_log(tolerances[x["step"]]) for x in found])
        span = _extent([x["spectrum"] for x in found], float(cut.min()))
        _draw_cells(axes, [x["spectrum"] for x in found], span)
        columns = np.arange(len(found))
        base = span[0] / BINS_PER_DECADE
        for sign, name in ((1, "positive"), (-1, "negative")):
            axes.plot(columns, sign * (cut - base), color=style.TEXT, ls=":", lw=1.2)
            middle = sign * (span[1] / BINS_PER_DECADE - base) / 2
            axes.annotate(
                name, (1.02, middle), xycoords=("axes fraction", "data"), va="center", fontsize=8
            )
        _name(axes, [x["step"] for x in found], span)
        return figure


def _log(tolerance: float) -> float:
    return math.log10(tolerance) if tolerance > 0 else math.nan


def _extent(spectra: Sequence[Mapping[str, Any]], cut: float) -> tuple[int, int]:
    """First and last bin that all columns together need."""
    top = max(s["bins"] + max(len(s["positive"]), len(s["negative"]), 1) for s in spectra)
    low = min(s["bins"] for s in spectra)
    if math.isfinite(cut):
        low = max(low, math.floor((cut - _BELOW) * BINS_PER_DECADE))
    return min(low, top - BINS_PER_DECADE), top


def _draw_cells(axes: Axes, spectra: Sequence[Mapping[str, Any]], span: tuple[int, int]) -> None:
    """Draw the logarithm of the counts, mirrored at the smallest size shown."""
    height = (span[1] - span[0]) / BINS_PER_DECADE
    for sign, colours in (("positive", "Blues"), ("negative", "Oranges")):
        cells = np.full((span[1] - span[0], len(spectra)), math.nan)
        for column, spectrum in enumerate(spectra):
            for i, count in enumerate(spectrum[sign]):
                row = spectrum["bins"] + i - span[0]
                if count and row >= 0:
                    cells[row, column] = math.log10(count)
        top = max(1.0, float(np.nanmax(cells, initial=0.0)))
        edges = (0.0, height) if sign == "positive" else (0.0, -height)
        axes.imshow(
            cells,
            aspect="auto",
            interpolation="nearest",
            origin="lower",
            cmap=colours,
            vmin=-0.5,
            vmax=top,
            extent=(-0.5, len(spectra) - 0.5, *edges),
        )
    axes.axhline(0, color=style.FAINT, lw=0.8)
    axes.set_ylim(-height, height)


def _name(axes: Axes, steps: Sequence[int], span: tuple[int, int]) -> None:
    """Label sizes of both signs, and steps."""
    base = span[0] / BINS_PER_DECADE
    first, last = math.ceil(base + 1), math.floor(span[1] / BINS_PER_DECADE)
    stride = max(1, math.ceil((last - first) / 2))
    sizes = list(range(last, first - 1, -stride))
    axes.set_yticks(
        [*(e - base for e in sizes), *(base - e for e in sizes)],
        [*(f"1e{e}" for e in sizes), *(f"−1e{e}" for e in sizes)],
        fontsize=7.5,
    )
    shown = list(range(0, len(steps), max(1, math.ceil(len(steps) / 6))))
    axes.set_xticks(shown, [style.magnitude(steps[i]) for i in shown])
    axes.set_xlabel("step", labelpad=1)
