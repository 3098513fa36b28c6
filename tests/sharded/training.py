"""Runs under ``ModelParallelStrategy``, each by the name of its mode, in processes that exist."""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchmetrics
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.monitor import bounds
from lightning_hessrank.results import RankBound
from lightning_hessrank.sharded import differences, estimate, live
from lightning_hessrank.sharded.live import LiveModule
from tests.sharded.networks import MLP
from tests.training import QUIET, dataset, memory_logger, snapshot

SAMPLES, BATCH = 22, 6
"""Eleven samples a process: batches of six and five."""


class Module(pl.LightningModule):
    """A sharded network, whose step changes and draws from everything that it can reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(MLP(), nn.BatchNorm1d(3), nn.Dropout(0.2), nn.Linear(3, 3))
        self.teacher = nn.Linear(4, 3).requires_grad_(False)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(3)
        self.register_buffer("calls", torch.zeros(1))
        self.losses: list[float] = []
        self.own_generator = torch.Generator().manual_seed(7)
        self.own_numpy = np.random.default_rng(8)
        self.lock = nullcontext()

    def configure_model(self) -> None:
        for layer in (*self.net[0].children(), self.net[3]):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        self.calls += 1
        with torch.no_grad():
            for parameter in self.teacher.parameters():
                parameter.mul_(0.99)
        noise = float(np.random.randn()) + random.random() + float(torch.rand(()))
        noise += float(torch.rand((), generator=self.own_generator))
        noise += float(self.own_numpy.standard_normal())
        inputs += 0.01 * noise
        logits = self.net(inputs)
        loss = F.cross_entropy(logits, labels)
        self.losses.append(float(loss.detach()))
        self.accuracy(logits.detach(), labels)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]


class Findings(pl.Callback):
    """Notes what a process has at the end."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        state = snapshot(trainer, pl_module, pl_module.own_generator)
        state["attribute calls"] = pl_module.calls
        self.found["state"] = local(state)


def local(value: Any) -> Any:
    """The same with every sharded tensor's local part, which can be compared and pickled."""
    if isinstance(value, dict):
        return {k: local(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(local, value))
    if isinstance(value, Tensor):
        value = value.to_local() if hasattr(value, "to_local") else value
        return value.detach().clone()
    return value


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


@contextmanager
def _unprotected(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


class _Forgetful(live.State):
    """Puts back what the trainer is called by, and nothing else."""

    @contextmanager
    def rewound(self) -> Iterator[None]:
        attributes = vars(owner["module"])
        before = dict(attributes)
        yield
        attributes.clear()
        attributes.update(before)


@contextmanager
def left_out(what: str) -> Iterator[None]:
    """Leave one of the things that are put back as a measurement left it."""
    change: tuple[Any, str, Any] = {
        "shards": (LiveModule, "put_back_shards", _nothing),
        "state": (live, "State", _Forgetful),
        "generators": (live, "frozen_rng", _unprotected),
        "logging": (LiveModule, "_detach_from_trainer", _nothing),
        "gradients": (LiveModule, "_put_back_gradients", _nothing),
        "frozen": (LiveModule, "_put_back_frozen", _nothing),
    }[what]
    owner, name, replacement = change
    before = getattr(owner, name)
    setattr(owner, name, replacement)
    undisturbed = live.undisturbed
    if what == "generators":
        live.undisturbed = nullcontext  # type: ignore[assignment]
    try:
        yield
    finally:
        setattr(owner, name, before)
        live.undisturbed = undisturbed


@contextmanager
def failing(where: str) -> Iterator[None]:
    """Let the second process fail in the second measurement."""
    here = int(os.environ.get("LOCAL_RANK", "0")) == 1
    original, count = LiveModule.gradient, 0
    forward = MLP.forward

    def gradient(self: Any, displacement: Any = None) -> Any:
        nonlocal count
        count += 1
        self.module.breaks = here and self.module.global_step == 2 and count % 30 == 7
        if self.module.breaks and where == "gradient":
            raise ValueError("no gradient on this process")
        return original(self, displacement)

    def breaking(self: Any, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x).tanh())
        if where == "forward" and owner["module"].__dict__.get("breaks", False):
            raise ValueError("no forward pass on this process")
        return self.last(hidden.tanh())

    LiveModule.gradient = gradient  # type: ignore[method-assign]
    MLP.forward = breaking  # type: ignore[method-assign]
    try:
        yield
    finally:
        LiveModule.gradient = original  # type: ignore[method-assign]
        MLP.forward = forward  # type: ignore[method-assign]


owner: dict[str, Any] = {}


@contextmanager
def brief(kind: str) -> Iterator[None]:
    """As few products as disturb training, and can be failed at; a bound in one run only."""
    stub = RankBound(9, 5, 4, (), 9, "closed-form", is_theorem=False, reason="It is a stub.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "DEFAULT_PRODUCTS", estimate.FEWEST if kind == "monitored" else 8)
        if kind != "monitored":
            patch.setattr(differences, "RUNGS", 3)
            patch.setattr(bounds, "reference_bound", lambda *_, **options: stub)
        yield


def train(mode: str) -> dict[str, Any]:
    """Train twice two steps, with what the mode says; return what is there at the end."""
    kind, _, detail = mode.partition("-")
    pl.seed_everything(0, verbose=False)
    np.random.seed(0)
    module = owner["module"] = Module()
    options: dict[str, Any] = {"max_samples": 8, "max_seconds": None, "progress_bar": False}
    options |= {"every_n_steps": 2, **({"method": "dense"} if kind == "dense" else {})}
    findings = Findings()

    def trainer(max_epochs: int = 2) -> pl.Trainer:
        monitors = [] if kind == "alone" else [HessianRankMonitor(**options)]
        logger = memory_logger(pl)
        return pl.Trainer(
            **{**QUIET, "max_epochs": max_epochs, "logger": logger, "log_every_n_steps": 1},
            accumulate_grad_batches=2 if detail == "accumulated" else 1,
            precision="bf16-mixed" if detail == "autocast" else "32-true",
            strategy=ModelParallelStrategy(
                data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
            ),
            devices=2,
            callbacks=[*monitors, findings],
        )

    change: dict[str, Any] = {"without": left_out, "failing": failing}
    loader = DataLoader(dataset(SAMPLES), batch_size=BATCH)
    checkpoint = None
    with ExitStack() as stack:
        said = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        stack.enter_context(brief(kind))
        stack.enter_context(change.get(kind, lambda _: nullcontext())(detail))
        if kind == "resumed":
            first = trainer(max_epochs=1)
            first.fit(module, loader)
            folder = [tempfile.mkdtemp()]
            dist.broadcast_object_list(folder)
            checkpoint = f"{folder[0]}/checkpoint"
            first.save_checkpoint(checkpoint)
            (monitor,) = (x for x in first.callbacks if isinstance(x, HessianRankMonitor))
            findings.found["before"] = list(monitor.history)
            module = owner["module"] = Module()
        run = trainer()
        run.fit(module, loader, ckpt_path=checkpoint)
    monitors = [x for x in run.callbacks if isinstance(x, HessianRankMonitor)]
    return findings.found | {
        "histories": [x.history for x in monitors],
        "said": [str(x.message) for x in said if "HessianRank" in str(x.message)],
        "steps": run.global_step,
        "metrics": {k: float(v) for k, v in run.callback_metrics.items()},
    }
