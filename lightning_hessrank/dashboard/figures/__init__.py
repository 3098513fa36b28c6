"""Figures of a measurement, a bound and a run, drawn from results alone (matplotlib)."""

from lightning_hessrank.dashboard.figures.density import density_figure
from lightning_hessrank.dashboard.figures.history import history_figure
from lightning_hessrank.dashboard.figures.layers import (
    bound_figure,
    layers_figure,
    layers_over_time_figure,
)
from lightning_hessrank.dashboard.figures.spectrum import sorted_figure, spectrum_figure
from lightning_hessrank.dashboard.figures.style import png

__all__ = [
    "bound_figure",
    "density_figure",
    "history_figure",
    "layers_figure",
    "layers_over_time_figure",
    "png",
    "sorted_figure",
    "spectrum_figure",
]
