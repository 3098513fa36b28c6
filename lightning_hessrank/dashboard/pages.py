"""The report for loggers that keep files, through the one call that they have for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

#: ``(tag, html)`` -> kept.
PageSink = Callable[[str, str], Any]


def page_sink(logger: Any) -> PageSink | None:
    """Return how to hand a page to this logger, or ``None`` where it has no way that is known.

    Known are MLflow's ``log_text``, told by its signature (the stand-in logger of ``fast_dev_run``
    has a method of every name), and Weights & Biases, whose pages are media of its own.
    """
    experiment: Any = getattr(logger, "experiment", None)
    method = getattr(experiment, "log_text", None)
    if callable(method) and {"run_id", "text", "artifact_file"} <= _parameters(method):
        return lambda tag, html: method(
            run_id=logger.run_id, text=html, artifact_file=f"{tag}.html"
        )
    if type(experiment).__module__.partition(".")[0] == "wandb":
        import wandb

        return lambda tag, html: experiment.log({tag: wandb.Html(html, inject=False)})
    return None


def _parameters(method: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(method).parameters)
    except (TypeError, ValueError):  # of some builtins
        return set()
