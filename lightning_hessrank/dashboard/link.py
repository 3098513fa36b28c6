"""The way to the dashboard: a command and a link with the best cards pinned."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

#: Cards of the Time Series page that answer "what is happening", by the ends of their tags. An
#: exact run has two of the scalars, a stochastic one too: TensorBoard leaves out what is not there.
_FIGURES = ("figures/overview", "figures/sorted")
_SCALARS = ("tolerance/rank_machine", "estimate/rank", "tolerance/rank_1e-3")


def dashboard_url(name: str, prefix: str = "", run: str = "") -> str:
    """Return the part of TensorBoard's address that pins the best cards and turns smoothing off.

    TensorBoard's default smoothing of 0.6 would draw ranks that were never measured.

    Args:
        name: the monitor's name, first part of its tags.
        prefix: the logger's own prefix of all its tags, with its joining character.
        run: the run's folder relative to ``--logdir``; images are pinned for one run only, and
            not at all without it.
    """
    tag = f"{prefix}{name}-"
    images = [
        {"plugin": "images", "tag": tag + x, "runId": f"defaultExperimentId/{run}", "sample": 0}
        for x in _FIGURES
        if run
    ]
    scalars = [{"plugin": "scalars", "tag": tag + x} for x in _SCALARS]
    pinned = quote(json.dumps([*images, *scalars], separators=(",", ":")), safe="")
    return f"/?smoothing=0&pinnedCards={pinned}#timeseries"


def announcement(loggers: Sequence[Any], name: str, address: str = "http://localhost:6006") -> str:
    """Return what to print when training starts; empty where no logger writes event files."""
    from lightning_hessrank.dashboard.tensorboard import TensorBoardPage

    for logger in loggers:
        page = TensorBoardPage.of(logger)
        if page is not None:
            run = page.writer.get_logdir()
            folder = logger.save_dir or run
            url = dashboard_url(name, page.prefix, os.path.relpath(run, folder))
            return (
                "Rank of the loss Hessian on TensorBoard:\n"
                f"  tensorboard --logdir {shlex.quote(folder)} --samples_per_plugin images=100\n"
                f"  {address}{url}"
            )
    return ""
