"""The report for loggers that keep files, through the one call that they have for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_hessrank.dashboard.images import method_of

#: ``(tag, html)`` -> kept.
PageSink = Callable[[str, str], Any]


def page_sink(logger: Any) -> PageSink | None:
    """Return how to hand a page to this logger, or ``None`` where it has no way that is known.

    Known are MLflow's ``log_text``, and Weights & Biases, whose pages are media of its own.
    """
    experiment: Any = getattr(logger, "experiment", None)
    method = method_of(logger, "log_text", {"run_id", "text", "artifact_file"})
    if method is not None:
        return lambda tag, html: method(
            run_id=logger.run_id, text=html, artifact_file=f"{tag}.html"
        )
    if type(experiment).__module__.partition(".")[0] == "wandb":
        import wandb

        return lambda tag, html: experiment.log({tag: wandb.Html(html, inject=False)})
    return None
