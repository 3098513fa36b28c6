"""Figures for loggers other than TensorBoard's, through whatever method for images they have.

Methods are told by their signature: the stand-in logger of ``fast_dev_run`` has one of every name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: ``(tag, figure, step)`` -> logged.
ImageSink = Callable[[str, "Figure", int], Any]
#: From a logger to its way to log a figure, ``None`` for loggers of other kinds.
SinkFinder = Callable[[Any], ImageSink | None]

_FINDERS: list[SinkFinder] = []


def image_logger(find: SinkFinder) -> SinkFinder:
    """Decorate a function that finds the image sink of one kind of logger; the last one is first.

    Args:
        find: gets any logger, and returns a sink, or ``None`` for a logger that it does not know.
    """
    _FINDERS.insert(0, find)
    return find


def image_sink(logger: Any) -> ImageSink | None:
    """Return how to log a figure with this logger, or ``None`` where it has no way that is known.

    Known are Lightning's ``log_image`` (Weights & Biases and those made like it), ``log_figure`` of
    MLflow's client and of Comet's experiment, and what :func:`image_logger` added.
    """
    sinks = (find(logger) for find in _FINDERS)
    return next((sink for sink in sinks if sink is not None), None)


@image_logger
def _comet(logger: Any) -> ImageSink | None:
    method = method_of(logger, "log_figure", {"figure_name", "figure", "step"})
    if method is None:
        return None
    return lambda tag, figure, step: method(figure_name=tag, figure=figure, step=step)


@image_logger
def _mlflow(logger: Any) -> ImageSink | None:
    method = method_of(logger, "log_figure", {"run_id", "figure", "artifact_file"})
    if method is None:
        return None
    return lambda tag, figure, step: method(
        run_id=logger.run_id, figure=figure, artifact_file=f"{tag}/{step}.png"
    )


@image_logger
def _log_image(logger: Any) -> ImageSink | None:
    if not callable(getattr(type(logger), "log_image", None)):
        return None
    return lambda tag, figure, step: logger.log_image(tag, [_image(figure)], step=step)


def method_of(logger: Any, name: str, parameters: set[str]) -> Callable[..., Any] | None:
    """The method of that name of a logger's experiment, if it takes these parameters."""
    method = getattr(getattr(logger, "experiment", None), name, None)
    if not callable(method) or not parameters <= set(inspect.signature(method).parameters):
        return None
    return method


def _image(figure: Figure) -> Any:
    from lightning_hessrank.dashboard.figures.style import render

    return render(figure)
