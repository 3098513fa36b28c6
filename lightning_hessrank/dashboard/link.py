"""The way to the dashboard: a command and a link with the best cards pinned."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

#: Cards of the Time Series page that answer "what is happening", best first.
PINNED = ("tolerance/rank_machine", "tolerance/rank_1e-3", "tolerance/rank_1e-1", "bound/rank")


def dashboard_url(name: str, prefix: str = "") -> str:
    """Return the part of TensorBoard's address that pins four cards and turns smoothing off.

    TensorBoard's default smoothing of 0.6 would draw ranks that were never measured. Cards for
    which there are no data are ignored by the browser.

    Args:
        name: the monitor's name, first part of its tags.
        prefix: the logger's own prefix of all its tags, with its joining character.
    """
    cards = [{"plugin": "scalars", "tag": f"{prefix}{name}-{leaf}"} for leaf in PINNED]
    pinned = quote(json.dumps(cards, separators=(",", ":")), safe="")
    return f"/?smoothing=0&pinnedCards={pinned}#timeseries"


def announcement(loggers: Sequence[Any], name: str, address: str = "http://localhost:6006") -> str:
    """Return what to print when training starts; empty where no logger writes event files."""
    from lightning_hessrank.dashboard.tensorboard import TensorBoardPage

    for logger in loggers:
        page = TensorBoardPage.of(logger)
        if page is not None:
            folder = shlex.quote(str(logger.save_dir or page.writer.get_logdir()))
            return (
                "Rank of the loss Hessian on TensorBoard:\n"
                f"  tensorboard --logdir {folder} --samples_per_plugin images=100\n"
                f"  {address}{dashboard_url(name, page.prefix)}"
            )
    return ""
