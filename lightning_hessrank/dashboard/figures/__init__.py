"""Figures of a measurement, a bound and a run, drawn from results alone.

Importing this says how results draw themselves; matplotlib is imported by the first figure drawn.
"""

from lightning_hessrank.dashboard.figures.density import density_figure
from lightning_hessrank.dashboard.figures.history import history_figure
from lightning_hessrank.dashboard.figures.layers import (
    bound_figure,
    layers_figure,
    layers_over_time_figure,
)
from lightning_hessrank.dashboard.figures.spectrum import sorted_figure, spectrum_figure
from lightning_hessrank.dashboard.figures.style import png
from lightning_hessrank.results import RankBound, RankEstimate, figure_of

figure_of.register(RankEstimate, sorted_figure)
figure_of.register(RankBound, bound_figure)

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
