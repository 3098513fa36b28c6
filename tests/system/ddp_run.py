"""Two-process runs for `test_distributed.py`: ``python -m tests.system.ddp_run OUT MODES``.

Writes each process's findings to ``OUT.<mode>.<rank>``.
"""

from __future__ import annotations

import logging
import os
import pickle
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_hessrank import HessianRankMonitor, measure
from lightning_hessrank.hessian import ReducedOperator
from lightning_hessrank.monitor.clock import Clock
from lightning_hessrank.subject.subject import Subject
from tests.training import QUIET, dataset, messy_module, plain_module, snapshot

SAMPLES, BATCH = 22, 6
"""Eleven samples a process: batches of six and five."""


class Spawned(pl.LightningModule):
    """As :func:`plain_module`, where it can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = torch.nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class LowRank(Spawned):
    """A linear network for which a sketch pays."""

    def __init__(self) -> None:
        super().__init__()
        widths = (4, 32, 32, 3)
        layers = [torch.nn.Linear(a, b, bias=False) for a, b in pairwise(widths)]
        self.net = torch.nn.Sequential(*layers)


class Findings(pl.Callback):
    """Writes what a process has at the end, which spawned ones cannot return."""

    def __init__(
        self,
        out: str,
        monitors: list[HessianRankMonitor],
        said: list[warnings.WarningMessage],
    ) -> None:
        self.out, self.monitors, self.said = out, monitors, said

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(f"{self.out}.ckpt")
        found = {
            "histories": [x.history for x in self.monitors],
            "said": [str(warning.message) for warning in self.said],
            "skipped": [x.state_dict()["skipped"] for x in self.monitors],
            "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
            "steps": trainer.global_step,
            "references": [
                x.state_dict()["reference"]["batches"][trainer.global_rank] for x in self.monitors
            ],
        }
        Path(f"{self.out}.{trainer.global_rank}").write_bytes(pickle.dumps(found))


@contextmanager
def failures_on_second_process() -> Iterator[None]:
    """Break the second measurement at a product, and the third at the copy, on one process."""
    init, to_dense = Subject.__init__, ReducedOperator.to_dense
    here = int(os.environ.get("LOCAL_RANK", "0")) == 1
    step = 0

    def failing_init(self: Subject, *args: Any, **kwargs: Any) -> None:
        nonlocal step
        step = kwargs["trainer"].global_step
        if here and step == 4:
            raise ValueError("no copy on this process")
        init(self, *args, **kwargs)

    def failing_products(self: Any, *args: Any, **kwargs: Any) -> Any:
        if here and step == 2:
            raise ValueError("no product on this process")
        return to_dense(self, *args, **kwargs)

    Subject.__init__ = failing_init  # type: ignore[method-assign]
    ReducedOperator.to_dense = failing_products  # type: ignore[method-assign]
    try:
        yield
    finally:
        Subject.__init__ = init  # type: ignore[method-assign]
        ReducedOperator.to_dense = to_dense  # type: ignore[method-assign]


def train(out: str, mode: str, said: list[warnings.WarningMessage]) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    options: dict[str, Any] = {"method": "dense", "max_samples": 8}
    modules = {
        **{"isolated": messy_module, "alone": messy_module},
        **{"spawn": lambda _: Spawned(), "sketch": lambda _: LowRank()},
    }
    module = modules.get(mode, plain_module)(pl)
    if mode == "budget":
        options |= {"every_n_steps": 1, "max_overhead": 0.5}
    if mode == "sketch":  # memory for the sketch's image on the first process only
        options["method"] = "sketch"
        share = 2**22 if os.environ.get("LOCAL_RANK", "0") == "1" else 2**30
        measure.memory_limit = lambda _: share  # type: ignore[assignment]
    monitors = [] if mode == "alone" else [HessianRankMonitor(**options)]
    if mode == "budget":  # the first process can afford every measurement, the second none
        projected = float(os.environ.get("LOCAL_RANK", "0"))
        Clock.projected_overhead = lambda self: projected  # type: ignore[method-assign]
    callbacks = [*monitors, Findings(f"{out}.{mode}", monitors, said)]
    if mode == "spawn":  # what a spawned process knows at the end is in its checkpoints only
        callbacks.append(ModelCheckpoint(f"{out}.checkpoints"))
    trainer = pl.Trainer(
        **{
            **QUIET,
            "max_epochs": 3 if mode == "failing" else 2,
            "enable_checkpointing": mode == "spawn",
        },
        strategy="ddp_spawn" if mode == "spawn" else "ddp",
        devices=2,
        callbacks=callbacks,
    )
    loader = DataLoader(dataset(SAMPLES), batch_size=BATCH)
    with failures_on_second_process() if mode == "failing" else nullcontext():
        trainer.fit(module, loader)
    if mode in ("isolated", "alone"):
        state = pickle.dumps(snapshot(trainer, module))
        Path(f"{out}.{mode}.state.{trainer.global_rank}").write_bytes(state)


def main(out: str, *modes: str) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning_hessrank").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for mode in modes:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train(out, mode, said)


if __name__ == "__main__":
    main(*sys.argv[1:])
