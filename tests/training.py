"""A training run that touches every kind of state, and snapshots of all of it."""

from __future__ import annotations

import importlib
import random
import threading
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

NAMESPACES = ("pytorch_lightning", "lightning.pytorch")

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
    "num_sanity_val_steps": 0,
}

#: Lightning's advice on tiny test runs, which is not what these tests are about.
ADVICE = (
    ".*does not have many workers.*",
    ".*number of training batches.*",
    ".*requested to overfit.*",
    ".*LeafSpec.*",
    ".*SWA.*",
    ".*no `val_dataloader`.*",
    ".*callbacks used to create the checkpoint.*",
    ".*without a bound.*",
    ".*Swapping scheduler.*",
    ".*Checkpoint directory.*",
    ".*resume a mid-epoch.*",
    ".*epoch.*resum.*",
)

#: For files of tests that train: no advice, and no bound, which costs a second for each network.
TRAINS = [
    pytest.mark.usefixtures("stub_bounds"),
    *(pytest.mark.filterwarnings(f"ignore:{advice}") for advice in ADVICE),
]


def namespace(name: str) -> ModuleType:
    return importlib.import_module(name)


def dataset(samples: int = 24, *, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 4, generator=generator)
    labels = torch.randint(0, 3, (samples,), generator=generator)
    return TensorDataset(inputs, labels)


def loader(samples: int = 24, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset(samples), **{"batch_size": 6, **options})


class Net(nn.Module):
    """Dropout, batch norm and an in-place activation between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.act(self.norm(self.first(x)))))


def messy_module(pl: ModuleType, *, logs: bool = True, lock: bool = True) -> Any:
    """Return a module whose step changes and draws from everything that it can reach."""

    class Messy(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(3)
            self.mean_loss = torchmetrics.MeanMetric()
            self.register_buffer("calls", torch.zeros(1))
            self.steps = 0
            self.losses: list[float] = []
            self.seen: dict[str, int] = {}
            self.lock = threading.Lock() if lock else nullcontext()
            self.own_generator = torch.Generator().manual_seed(7)
            self.own_numpy = np.random.default_rng(8)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            inputs, labels = batch
            self.steps += 1
            self.calls += 1
            noise = float(np.random.randn()) + random.random() + float(torch.rand(()))
            noise += float(torch.rand((), generator=self.own_generator))
            noise += float(self.own_numpy.standard_normal())
            inputs += 0.01 * noise  # in place: the reference data must be a copy
            logits = self.net(inputs)
            loss = nn.functional.cross_entropy(logits, labels)
            self.accuracy(logits.detach(), labels)
            self.mean_loss.update(loss.detach())
            with self.lock:
                self.losses.append(float(loss.detach()))
                self.seen[f"batch {batch_idx}"] = self.steps
            if logs:
                self.log("loss", loss, on_step=True, on_epoch=True)
                self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)]

    return Messy()


def memory_logger(pl: ModuleType) -> Any:
    """Return a logger that keeps what it is given."""
    base = importlib.import_module(f"{pl.__name__}.loggers.logger").DummyLogger

    class MemoryLogger(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.logged: list[tuple[int | None, dict[str, float]]] = []

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.logged.append((step, {k: float(v) for k, v in metrics.items()}))

    return MemoryLogger()


def snapshot(trainer: Any, module: Any, *generators: torch.Generator) -> dict[str, Any]:
    """Return everything that a run leaves behind, but for what the monitor itself logs."""
    uncompiled = getattr(module, "_orig_mod", module)
    state: dict[str, Any] = {
        "weights": dict(uncompiled.state_dict()),
        "gradients": {n: p.grad for n, p in uncompiled.named_parameters()},
        "requires_grad": {n: p.requires_grad for n, p in uncompiled.named_parameters()},
        "modes": {n: m.training for n, m in uncompiled.named_modules()},
        "optimizers": [x.state_dict() for x in trainer.optimizers],
        "schedulers": [x.scheduler.state_dict() for x in trainer.lr_scheduler_configs],
        "rng": {
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),
            "python": random.getstate(),
            "loaders": [x.get_state() for x in generators],
        },
        "flags": flags(),
        "callback_metrics": _own(trainer.callback_metrics),
        "progress": (trainer.global_step, trainer.current_epoch),
    }
    state["logged"] = [
        (step, _own(values))
        for logger in trainer.loggers
        for step, values in vars(logger).get("logged", [])
        if _own(values)
    ]
    for name, part in uncompiled.named_modules():
        if isinstance(part, torchmetrics.Metric):
            state[f"metric {name}"] = {k: getattr(part, k) for k in part._defaults}
            state[f"metric {name}"]["updates"] = part._update_count
    for name in ("steps", "losses", "seen"):
        if hasattr(uncompiled, name):
            state[f"attribute {name}"] = getattr(uncompiled, name)
    if hasattr(uncompiled, "own_generator"):
        state["rng"]["own torch"] = uncompiled.own_generator.get_state()
        state["rng"]["own numpy"] = uncompiled.own_numpy.bit_generator.state
        if not isinstance(uncompiled.lock, nullcontext):
            state["attribute lock"] = uncompiled.lock.locked()
    return state


def flags() -> dict[str, Any]:
    """Global switches of torch."""
    return {
        "default dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": torch.backends.cudnn.enabled,
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "checkpoint": torch.utils.checkpoint.CheckpointFunction,
        "function modes": torch.overrides._get_current_function_mode_stack(),
        "threads": torch.get_num_threads(),
    }


def _own(metrics: Any) -> dict[str, Any]:
    return {k: v for k, v in metrics.items() if not k.startswith("hessian")}


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return where two snapshots differ, bit by bit; nan equals nan."""
    if type(a) is not type(b):
        return [f"{path}: {type(a).__name__} and {type(b).__name__}"]
    if isinstance(a, dict):
        missing = [f"{path}/{k}: only in one" for k in a.keys() ^ b.keys()]
        return missing + [
            d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f"{path}/{k}")
        ]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: {len(a)} and {len(b)} entries"]
        return [
            d for i, x in enumerate(zip(a, b, strict=True)) for d in differences(*x, f"{path}/{i}")
        ]
    return [] if _same(a, b) else [path]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
    if isinstance(a, np.ndarray):
        return a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes()
    return bool(a == b)


def _bytes(x: Tensor) -> bytes:
    return x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def plain_module(
    pl: ModuleType, *, net: nn.Module | None = None, loss: Any = nn.functional.cross_entropy
) -> Any:
    """Return a module that does nothing but learn."""

    class Plain(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.net = nn.Linear(4, 3) if net is None else net

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            inputs, labels = batch
            value: Tensor = loss(self.net(inputs), labels)
            self.log("loss", value)
            return value

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            inputs, labels = batch
            self.log("val_loss", loss(self.net(inputs), labels))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Plain()
