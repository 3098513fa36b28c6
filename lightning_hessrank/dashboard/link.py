"""The way to the dashboard: a command, a link to the tab, and one that pins the best cards."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning_hessrank.dashboard.tab.records import PLUGIN

#: Cards of the Time Series page that answer "what is happening", by the ends of their tags. An
#: exact run has two of the scalars, a stochastic one too: TensorBoard leaves out what is not there.
_FIGURES = ("figures/overview", "figures/sorted")
_SCALARS = ("-tolerance/rank_machine", "-estimate/rank", "/rank_over_bound", "-tolerance/rank_1e-3")
#: Ends the address: the query's setting is lost on the way to the Scalars page, this one is not.
_UNSMOOTHED = "#timeseries&_smoothingWeight=0"


#: Where TensorBoard answers unless it is told otherwise.
ADDRESS = "http://localhost:6006"


def dashboard_url(name: str, prefix: str = "", run: str = "") -> str:
    """Return the part of TensorBoard's address that pins the best stock cards, unsmoothed.

    TensorBoard's default smoothing of 0.6 would draw ranks that were never measured.

    Args:
        name: the monitor's name, first part of its tags.
        prefix: the logger's own prefix of all its tags, with its joining character.
        run: the run's folder relative to ``--logdir``; images are pinned for one run only, and
            not at all without it.
    """
    tag = f"{prefix}{name}"
    images = [
        {
            "plugin": "images",
            "tag": f"{tag}-{x}",
            "runId": f"defaultExperimentId/{run}",
            "sample": 0,
        }
        for x in _FIGURES
        if run
    ]
    scalars = [{"plugin": "scalars", "tag": tag + x} for x in _SCALARS]
    pinned = quote(json.dumps([*images, *scalars], separators=(",", ":")), safe="")
    return f"/?smoothing=0&pinnedCards={pinned}{_UNSMOOTHED}"


def tab_url(address: str = ADDRESS) -> str:
    """Return the link to the tab "Hessian"."""
    return f"{address}/#{PLUGIN}"


def announcement(loggers: Sequence[Any], address: str = ADDRESS) -> str:
    """Return what to print when training starts; empty where no logger writes event files."""
    from lightning_hessrank.dashboard.tensorboard import TensorBoardPage

    for logger in loggers:
        page = TensorBoardPage.of(logger)
        if page is not None:
            folder = logger.save_dir or page.writer.get_logdir()
            if Path(folder).resolve() == Path.cwd():  # the default: TensorBoard would read it all
                folder = logger.root_dir
            return (
                "Rank of the loss Hessian on TensorBoard:\n"
                f"  tensorboard --logdir {shlex.quote(folder)} --samples_per_plugin images=100\n"
                f"  {tab_url(address)}"
            )
    return ""
