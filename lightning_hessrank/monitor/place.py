"""Where a run stands when it is measured, with a Trainer or without one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from lightning_hessrank.monitor.progress import MakeBar, trainer_bar


@dataclass(frozen=True)
class Place:
    """All that a measurement asks of the run around it."""

    step: int
    """Optimiser steps done."""
    epoch: int
    """Index of the epoch last trained in."""
    trainer: Any = None
    """What the step may read as ``self.trainer``."""
    make_bar: MakeBar | None = None
    """How to show a progress bar; ``None``: not at all."""

    def optimiser(self) -> tuple[float | None, float | None]:
        """Return weight decay, and learning rate where it is plain gradient descent.

        ``None`` where there is no single optimiser, or none with one such number for all.
        """
        found = getattr(self.trainer, "optimizers", None)
        if not isinstance(found, (list, tuple)) or len(found) != 1:
            return None, None
        optimiser = found[0]
        groups = getattr(optimiser, "param_groups", None) or []
        decay = _common(groups, "weight_decay")
        plain = isinstance(optimiser, torch.optim.SGD) and not any(g["momentum"] for g in groups)
        return decay, _common(groups, "lr") if plain else None

    @classmethod
    def of(cls, trainer: Any, epoch: int) -> Place:
        """Return where a live Lightning trainer stands.

        Args:
            trainer: whose ``global_step`` counts.
            epoch: given, since the trainer's own is one ahead after the last.
        """
        return cls(trainer.global_step, epoch, trainer, trainer_bar(trainer))

    @classmethod
    def at_checkpoint(cls, step: int, epoch: int, make_bar: MakeBar | None = None) -> Place:
        """Return where a run stood when a checkpoint was written."""
        return cls(step, epoch, Standstill(step, epoch), make_bar)


def _common(groups: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the positive number that all groups have under a key; ``None``: there is no such."""
    try:
        values = {float(group[key]) for group in groups}
    except (KeyError, TypeError, ValueError, RuntimeError):  # of an optimiser of one's own
        return None
    value = values.pop() if len(values) == 1 else 0.0
    return value if 0 < value < math.inf else None


@dataclass(frozen=True)
class Standstill:
    """What a step finds as its trainer where there is none: what a checkpoint says of the run."""

    global_step: int
    current_epoch: int
    world_size: int = 1
    num_devices: int = 1
    num_nodes: int = 1
    global_rank: int = 0
    local_rank: int = 0
    node_rank: int = 0
    is_global_zero: bool = True
    training: bool = True
    validating: bool = False
    testing: bool = False
    predicting: bool = False
    evaluating: bool = False
    sanity_checking: bool = False
    fast_dev_run: bool = False
    datamodule: None = None

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse to guess: a number made up here would go into the rank."""
        raise AttributeError(
            f"the step reads trainer.{name}, which a checkpoint does not tell; pass a loss "
            "function that needs no trainer (loss_fn(module, batch) -> scalar loss)"
        )
