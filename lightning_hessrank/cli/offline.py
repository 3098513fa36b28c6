"""The offline twin of the callback: the same run, shown checkpoints instead of a fit.

The folder is continued where it stopped, whenever that was. One file, ``monitor.pt``, is the truth,
and it is replaced in one go. Event files are written before it, so a step that it knows is on the
dashboard; interrupted in between, the step is measured again and written twice, with the same
numbers. The table is made from it alone, and made anew whenever the folder is opened.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from lightning_hessrank.cli.checkpoints import Checkpoint
from lightning_hessrank.cli.recorded import Recorded
from lightning_hessrank.dashboard import Dashboard, scalars
from lightning_hessrank.monitor.log import logger
from lightning_hessrank.monitor.place import Place
from lightning_hessrank.monitor.progress import MakeBar
from lightning_hessrank.monitor.run import Run
from lightning_hessrank.monitor.settings import Settings
from lightning_hessrank.processes import Processes

_STATE = "monitor.pt"
_TABLE = "measurements.csv"


class FolderError(ValueError):
    """A folder cannot be continued: it means something else, or cannot be read or written."""


class EventFiles:
    """As much of a logger as the dashboard asks for: TensorBoard's event files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.save_dir = str(folder)

    @cached_property
    def experiment(self) -> SummaryWriter:
        """The writer; it begins a file at once, hence only when there is something to write."""
        return SummaryWriter(self.save_dir)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in metrics.items():
            self.experiment.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish the file, if one was begun."""
        if "experiment" in vars(self):
            self.experiment.close()


class OfflineRun:
    """Measurements of one run's checkpoints, kept in a folder.

    The folder has TensorBoard's event files, ``measurements.csv``, and the state of the run, as a
    checkpoint would keep it: history, reference data, bound.

    Args:
        folder: made where it does not exist.
        settings: what to measure, and how.
        fixed: what gives the numbers their meaning, builtin types only: compared with what the
            folder was measured with.
        own: the run's own monitor, whose data and bound are taken unless the settings have data.

    Raises:
        FolderError: it was measured with something else, or cannot be read or written.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        fixed: Mapping[str, Any],
        own: Recorded | None = None,
    ) -> None:
        self.folder = folder
        self.table = folder / _TABLE
        self.rows: list[dict[str, Any]] = []
        """One per checkpoint measured: which, and what was found."""
        self._fixed = dict(fixed)
        self._run = Run(settings)
        self._dashboard = Dashboard(name=settings.name)
        self._events = EventFiles(folder)
        self._begun = False
        if own is not None:
            self._run.series.begin_like(own.state, same_data=settings.data is None)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._take_up()
        except OSError as error:
            raise FolderError(f"{folder} cannot be used: {error.strerror or error}") from error

    @property
    def history(self) -> list[dict[str, Any]]:
        """One plain dict per measurement, as the callback's."""
        return self._run.series.history

    def pending(self, found: Sequence[Checkpoint]) -> tuple[list[Checkpoint], dict[Path, str]]:
        """Return the checkpoints that are yet to measure, and those at odds with another."""
        measured = {row["step"]: (row["weights"], row["checkpoint"]) for row in self.rows}
        steps = dict(measured)
        todo: list[Checkpoint] = []
        conflicts: dict[Path, str] = {}
        for checkpoint in found:
            weights, name = steps.setdefault(
                checkpoint.step, (checkpoint.weights, checkpoint.path.name)
            )
            if weights != checkpoint.weights:
                conflicts[checkpoint.path] = (
                    f"{name} has other weights at the same step {checkpoint.step}: are these two "
                    "runs? Measure each on its own"
                )
            elif name == checkpoint.path.name and checkpoint.step not in measured:
                todo.append(checkpoint)
        return todo, conflicts

    def measure(
        self, checkpoint: Checkpoint, module: Any, make_bar: MakeBar | None = None
    ) -> dict[str, Any]:
        """Measure a module that has a checkpoint's weights, keep and return its record.

        Raises:
            Exception: whatever the measurement raises.
        """
        run, step = self._run, checkpoint.step
        if not self._begun:
            self._begin(module)
        run.collect_reference(module, None)
        measurement = run.take(module, Place.at_checkpoint(step, checkpoint.epoch, make_bar))
        record = run.series.record(measurement)
        run.save_spectra(measurement)
        history, details = [*self.history, record], run.series.details_with(measurement)
        self._dashboard.write([self._events], measurement, history, step, details)
        row = {
            "checkpoint": checkpoint.path.name,
            "weights": checkpoint.weights,
            "epoch": checkpoint.epoch,
            "step": step,
            **scalars(measurement, self._dashboard.name),
        }
        run.series.add(measurement)
        self.rows.append(row)
        kept = {"settings": self._fixed, "monitor": run.series.state_dict(), "rows": self.rows}
        unfinished = self.folder / f"{_STATE}.part"
        torch.save(kept, unfinished)
        os.replace(unfinished, self.folder / _STATE)
        self._write_table()
        return record

    def close(self) -> None:
        """Finish the files."""
        self._events.close()

    def _begin(self, module: Any) -> None:
        self._run.series.clock.start()
        self._run.join(Processes(), module)
        logger.info(self._dashboard.start([self._events]))
        self._begun = True

    def _take_up(self) -> None:
        """Go on with what the folder holds."""
        state = self.folder / _STATE
        if not state.exists():
            return
        try:
            kept = torch.load(state, weights_only=True)
            before, monitor, self.rows = kept["settings"], kept["monitor"], kept["rows"]
        except Exception as error:  # a truncated archive raises half a dozen kinds
            raise FolderError(
                f"{state} is damaged or of another version ({type(error).__name__} while reading "
                "it); remove it to measure anew, or choose another --output"
            ) from error
        for name, now in self._fixed.items():
            if before.get(name) != now:
                raise FolderError(
                    f"{self.folder} has measurements with {name}={before.get(name)!r}, not "
                    f"{now!r}: one folder, one meaning; choose another --output, or the same "
                    "settings"
                )
        self._run.series.load_state_dict(monitor)
        self._write_table()

    def _write_table(self) -> None:
        """Replace the table by one with every row."""
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        unfinished = self.table.with_suffix(".part")
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(unfinished, self.table)
