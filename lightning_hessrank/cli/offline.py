"""The offline twin of the callback: the same monitor, fed with checkpoints instead of a fit."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from lightning_hessrank.cli.checkpoints import Checkpoint
from lightning_hessrank.monitor.callback import HessianRankMonitor

_STATE = "monitor.pt"
_TABLE = "measurements.csv"


class SettingsChangedError(ValueError):
    """A folder holds measurements that mean something else than the new ones would."""


class OfflineTrainer(pl.Trainer):
    """A trainer that never trains, and stands at whatever step it is told."""

    global_step = 0
    current_epoch = 0


class Table(Logger):
    """One row a checkpoint, in a CSV file that is complete after every row.

    Args:
        path: of the file; one that exists is continued.
    """

    experiment = None
    name = None
    version = None

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._current: dict[str, Any] = {}
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    def at(self, checkpoint: Checkpoint) -> None:
        """Say which checkpoint the next row belongs to."""
        self._current = {
            "checkpoint": checkpoint.path.name,
            "weights": checkpoint.weights,
            "epoch": checkpoint.epoch,
        }

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row, and replace the file by one that has it."""
        self.rows.append({**self._current, "step": step, **metrics})
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        unfinished = self.path.with_suffix(".part")
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(unfinished, self.path)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to keep."""

    def has(self, step: int) -> bool:
        """Whether a step has been measured."""
        return any(int(row["step"]) == step for row in self.rows)


@dataclass
class OfflineRun:
    """Measurements of one run's checkpoints, kept in a folder, continued where they stopped.

    The folder has TensorBoard's event files, ``measurements.csv``, and the state of the monitor, as
    a checkpoint would keep it: history, reference data, bound.
    """

    folder: Path
    monitor: HessianRankMonitor
    settings: dict[str, Any]
    """What fixes the meaning of the numbers: builtin types only."""

    def __post_init__(self) -> None:
        """Take up what the folder holds.

        Raises:
            SettingsChangedError: it was measured with other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.table = Table(self.folder / _TABLE)
        tensorboard = TensorBoardLogger(self.folder, name="", version="")
        self.trainer = OfflineTrainer(
            accelerator="cpu",
            logger=[tensorboard, self.table],
            callbacks=[],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        self._begun = False
        state = self.folder / _STATE
        if state.exists():
            kept = torch.load(state, weights_only=True)
            self._check_settings(kept["settings"])
            self.monitor.load_state_dict(kept["monitor"])

    def pending(self, found: Sequence[Checkpoint]) -> tuple[list[Checkpoint], dict[Path, str]]:
        """Return the checkpoints that are yet to measure, and those at odds with another."""
        steps = {int(row["step"]): (row["weights"], row["checkpoint"]) for row in self.table.rows}
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
            elif name == checkpoint.path.name and not self.table.has(checkpoint.step):
                todo.append(checkpoint)
        return todo, conflicts

    def measure(self, checkpoint: Checkpoint, module: Any) -> dict[str, Any]:
        """Measure a module that has a checkpoint's weights, log it, and return its record.

        Raises:
            Exception: whatever the monitor raises.
        """
        history = self.monitor.history
        if not self._begun:
            # As at the start of `fit`: collects the reference data. A monitor that is ahead of its
            # trainer would begin a new history, so it starts from the last step that it knows.
            self._stand_at(history[-1] if history else vars(checkpoint))
            self.table.at(checkpoint)
            self.monitor.on_fit_start(self.trainer, module)
            self.monitor.on_train_batch_start(self.trainer, module, None, 0)
            self._begun = True
        self._stand_at(vars(checkpoint))
        self.table.at(checkpoint)
        self.monitor.on_train_start(self.trainer, module)  # says where the checkpoint stands
        self.monitor.on_train_end(self.trainer, module)  # unless just measured
        kept = {"settings": self.settings, "monitor": self.monitor.state_dict()}
        unfinished = self.folder / f"{_STATE}.part"
        torch.save(kept, unfinished)
        os.replace(unfinished, self.folder / _STATE)  # an interruption leaves the old or the new
        return self.monitor.history[-1]

    def close(self) -> None:
        """Finish the files."""
        for logger in self.trainer.loggers:
            logger.finalize("success")

    def _stand_at(self, place: Mapping[str, Any]) -> None:
        self.trainer.global_step = place["step"]
        self.trainer.current_epoch = place["epoch"]

    def _check_settings(self, before: Mapping[str, Any]) -> None:
        for name, now in self.settings.items():
            if before.get(name) != now:
                raise SettingsChangedError(
                    f"{self.folder} has measurements with {name}={before.get(name)!r}, not "
                    f"{now!r}: one folder, one meaning; choose another --output, or the same "
                    "settings"
                )


def open_run(
    folder: Path,
    *,
    data: Any,
    loss_fn: Any,
    settings: Mapping[str, Any],
    names: Mapping[str, Any],
) -> OfflineRun:
    """Begin or continue measurements in a folder.

    Args:
        folder: made where it does not exist.
        data: as the monitor takes it.
        loss_fn: as the monitor takes it.
        settings: further arguments of the monitor.
        names: how model, data and loss function were named, to compare with what is there.

    Raises:
        SettingsChangedError: the folder was measured with other settings.
    """
    monitor = HessianRankMonitor(data=data, loss_fn=loss_fn, on_error="raise", **settings)
    return OfflineRun(folder, monitor, {**settings, **names})
