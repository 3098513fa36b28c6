"""The dashboard: writes what a measurement found to every logger there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_hessrank.dashboard.tags import scalars
from lightning_hessrank.dashboard.tensorboard import TensorBoardPage
from lightning_hessrank.results import Measurement


@dataclass(frozen=True)
class Dashboard:
    """What is written for people to look at; each element can be switched off.

    Every logger gets the scalars; TensorBoard gets everything.
    """

    name: str = "hessian"
    """First part of every tag."""
    layout: bool = True
    """Charts on TensorBoard's Custom Scalars page (one page per run: a user's own is kept)."""

    def start(self, loggers: Sequence[Any]) -> None:
        """Write what can be said before anything is measured."""

    def write(
        self,
        loggers: Sequence[Any],
        measurement: Measurement,
        history: Sequence[Mapping[str, Any]],
        step: int,
    ) -> None:
        """Write a measurement to every logger; call it on rank zero only.

        Args:
            loggers: ``trainer.loggers``, of any kind.
            measurement: what was found.
            history: records of the run so far, this measurement's included.
            step: ``trainer.global_step``.
        """
        values = scalars(measurement, self.name)
        for logger in loggers:
            logger.log_metrics(values, step=step)
        for logger in loggers:
            page = TensorBoardPage.of(logger)
            if page is not None:
                self._write_page(page, values, measurement)

    def _write_page(
        self, page: TensorBoardPage, values: Mapping[str, float], measurement: Measurement
    ) -> None:
        if self.layout:
            page.lay_out(self.name, values, measurement.bound)
        page.flush()
