"""What people see in TensorBoard: tags, layout, figures (a first, thin form)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_hessrank.results import Measurement


class Dashboard:
    """Writes measurements to loggers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, loggers: Sequence[Any]) -> None:
        """Nothing to set up yet."""

    def write(
        self, loggers: Sequence[Any], measurement: Measurement, history: list[Any], step: int
    ) -> None:
        """Write the scalars of a measurement to every logger."""
        for logger in loggers:
            logger.log_metrics(scalars(measurement, self.name), step=step)


def scalars(measurement: Measurement, name: str) -> dict[str, float]:
    """Return logged names and values."""
    return {f"{name}/rank": float(measurement.total.rank)}
