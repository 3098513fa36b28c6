"""A run in a terminal, for `test_terminal.py`: every measurement takes long enough to show a bar.

Arguments: namespace, class of the Trainer's progress bar (or `None`), whether the monitor's bar is
wanted.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
import warnings

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.monitor import progress
from lightning_hessrank.monitor.log import logger
from tests.training import QUIET, loader, plain_module

SAID = "hessian: said while a bar is shown"


def slowly() -> None:
    """Let a bar appear at once and stay for a while, and something be said meanwhile."""
    count = progress.ProgressBar.__call__

    def call(self: progress.ProgressBar, done: int, total: int) -> None:
        count(self, done, total)
        logger.info(SAID)
        time.sleep(0.12)

    progress.PATIENCE = 0.0
    progress.ProgressBar.__call__ = call  # type: ignore[method-assign]


def main(namespace: str, bar: str, wanted: str) -> None:
    warnings.simplefilter("ignore")
    slowly()
    pl = importlib.import_module(namespace)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)  # its lines are glued to its own bars
    bars = [] if bar == "None" else [getattr(pl.callbacks, bar)()]
    monitor = HessianRankMonitor(method="sketch", progress_bar=wanted == "True", on_error="raise")
    trainer = pl.Trainer(
        **{**QUIET, "enable_progress_bar": bool(bars)}, max_epochs=2, callbacks=[*bars, monitor]
    )
    trainer.fit(plain_module(pl), loader(), loader())


if __name__ == "__main__":
    main(*sys.argv[1:])
