"""Figures for loggers other than TensorBoard's, through whatever method for images they have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: ``(tag, figure, step)`` -> logged.
ImageSink = Callable[[str, "Figure", int], Any]


def image_sink(logger: Any) -> ImageSink | None:
    """Return how to log a figure with this logger, or ``None`` where it has no way that is known.

    Known are Lightning's ``log_image`` (Weights & Biases and those made like it) and the
    ``log_figure`` of MLflow's client and of Comet's experiment. Methods are told by their
    signature: the stand-in logger of ``fast_dev_run`` has a method of every name.
    """
    if callable(getattr(type(logger), "log_image", None)):
        return lambda tag, figure, step: logger.log_image(tag, [_image(figure)], step=step)
    method = getattr(getattr(logger, "experiment", None), "log_figure", None)
    if not callable(method):
        return None
    parameters = set(inspect.signature(method).parameters)
    if {"run_id", "figure", "artifact_file"} <= parameters:
        return lambda tag, figure, step: method(
            run_id=logger.run_id, figure=figure, artifact_file=f"{tag}/{step}.png"
        )
    if {"figure_name", "figure", "step"} <= parameters:
        return lambda tag, figure, step: method(figure_name=tag, figure=figure, step=step)
    return None


def _image(figure: Figure) -> Any:
    from lightning_hessrank.dashboard.figures.style import render

    return render(figure)
