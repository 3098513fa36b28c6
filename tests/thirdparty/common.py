"""One model of a published package: trained with and without the monitor, and held to an oracle.

A :class:`Case` trains the same few steps twice from the same seed, once under a
``HessianRankMonitor`` with default arguments. What is compared:

* every tensor of the trained module's ``state_dict``, bit by bit;
* the rank at the end of training, at machine precision and at 1e-3, with that of a dense Hessian:
  the trained module is cast to float64, and its own ``training_step`` differentiated twice, row by
  row, on the reference data of the monitor. Of this package, only the casting of the batch takes
  part;
* bounds that are called theorems, which must not lie below that rank.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch
import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, TensorDataset

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.network.batches import cast_batch

ROWS = Path(__file__).parent / "rows"
#: Parameters up to which the dense oracle is computed.
MAX_DENSE = 2500
#: Steps of training.
STEPS = 3
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "default_root_dir": tempfile.gettempdir(),
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

Train = Callable[[list[Any]], nn.Module]


@dataclass(frozen=True)
class Case:
    """A model and how people train it."""

    package: str
    """As installed."""
    name: str
    train: Train
    """Trains a new model from the same seed with some callbacks, and returns the module."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the monitor, where the defaults do not do; shown in the table."""


class Wrapped(pl.LightningModule):
    """A network of a package without a training step, and the step that its users write."""

    def __init__(
        self, net: nn.Module, step: Callable[[Any, Any], Tensor], lr: float = 1e-2
    ) -> None:
        super().__init__()
        self.net, self.step, self.lr = net, step, lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step(self.net, batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], self.lr)


def fitted(build: Callable[[], tuple[Any, Iterable[Any]]], steps: int = STEPS) -> Train:
    """Return how to train what ``build`` makes: a Lightning module and its batches."""

    def train(callbacks: list[Any]) -> nn.Module:
        pl.seed_everything(0, verbose=False)
        module, batches = build()
        own = pl if isinstance(module, pl.LightningModule) else lightning.pytorch
        trainer = own.Trainer(max_steps=steps, max_epochs=-1, callbacks=callbacks, **QUIET)
        trainer.fit(module, batches)
        return module

    return train


def wrapped(
    build: Callable[[], nn.Module],
    step: Callable[[Any, Any], Tensor],
    data: Callable[[], Sequence[Tensor]],
    batch_size: int = 16,
) -> Train:
    """Return how to train a network on tensors, by a step of its user's."""

    def make() -> tuple[Any, Iterable[Any]]:
        net = build()
        return Wrapped(net, step), DataLoader(TensorDataset(*data()), batch_size)

    return fitted(make)


def seeded(
    train: Callable[[list[Any]], object], seed: Callable[[int], object] = pl.seed_everything
) -> Train:
    """Return how to train by a package's own ``fit``, whatever that gives back."""

    def captured(callbacks: list[Any]) -> nn.Module:
        seed(0)
        kept: list[Any] = []

        class Keep(Callback):
            def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
                kept.append(pl_module)

        train([Keep(), *callbacks])
        return kept[-1]

    return captured


def run(case: Case) -> dict[str, Any]:
    """Train twice, compare, and write the row."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning_hessrank").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    monitor = HessianRankMonitor(every_n_epochs=10**9, progress_bar=False, **case.options)
    clock, reference = Clock(), Reference()
    plain = _state(case.train([clock]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = case.train([monitor, reference])
    said = [str(w.message) for w in caught if type(w.message).__module__.startswith("lightning_h")]
    watched = _state(module)
    different = [
        name
        for name in plain.keys() | watched.keys()
        if name not in plain or name not in watched or not _same(plain[name], watched[name])
    ]
    found: dict[str, Any] = {
        "package": f"{case.package} {version(case.package)}",
        "model": case.name,
        "options": {name: str(value) for name, value in case.options.items()},
        "seconds_per_step": round(clock.seconds / clock.steps, 4),
        "undisturbed": not different,
        "different": different[:5],
        "said": [text.removeprefix("HessianRankMonitor: ") for text in said],
    }
    if monitor.history:
        found |= _measured(monitor.history[-1])
        found |= _held_to_an_oracle(module, monitor, reference.batches, found)
    ROWS.mkdir(exist_ok=True)
    words = re.findall("[a-z0-9]+", f"{case.package} {case.name}".lower())
    path = ROWS / f"{'-'.join(words)}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def run_all(cases: Sequence[Case]) -> None:
    """Run cases one after the other; tell each in a line."""
    for case in cases:
        found = run(case)
        shown = {k: v for k, v in found.items() if k not in {"options", "different", "said"}}
        print(json.dumps(shown), *found["different"], *found["said"], sep="\n  ", flush=True)


def _measured(record: dict[str, Any]) -> dict[str, Any]:
    """What is taken from the last record of a history."""
    names = ("num_parameters", "method", "rank", "rank_outer", "rank_functional", "num_samples")
    bounds = ("bound", "bound_is_theorem", "batch_bound", "batch_bound_is_theorem", "products")
    found = {name: record[name] for name in (*names, *bounds) if name in record}
    found["counts"] = {str(t): n for t, n in record["counts"].items()}
    found["seconds"] = round(record["seconds"], 2)
    return found


def _held_to_an_oracle(
    module: nn.Module, monitor: HessianRankMonitor, batches: list[Any], found: dict[str, Any]
) -> dict[str, Any]:
    if found["num_parameters"] > MAX_DENSE or found["method"] != "dense":
        return {"oracle": f"not computed: {found['num_parameters']:,} parameters"}
    try:
        mode = monitor.history[-1]["module_mode"]
        torch.set_default_dtype(torch.float64)
        values = np.abs(eigenvalues(module, batches, training=mode == "train"))
    except Exception as error:  # what a package's step does outside of its trainer
        return {"oracle": f"not computed: {type(error).__name__}: {error}"}
    finally:
        torch.set_default_dtype(torch.float32)
    p, largest = found["num_parameters"], values.max()
    machine = int((values > p * np.finfo(float).eps * largest).sum())
    coarse = int((values > 1e-3 * largest).sum())
    for name in ("bound", "batch_bound"):
        if found.get(f"{name}_is_theorem", name == "batch_bound") and name in found:
            assert machine <= found[name], (name, machine, found[name])
    return {
        "oracle": {"machine": machine, "1e-3": coarse},
        "agrees": machine == found["rank"] and coarse == found["counts"]["0.001"],
    }


class Clock(Callback):
    """Times the steps of training."""

    began, seconds, steps = 0.0, 0.0, 0  # of the class: some packages train with copies

    def __init__(self) -> None:
        Clock.seconds, Clock.steps = 0.0, 0

    def on_train_batch_start(self, *args: Any) -> None:
        Clock.began = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        Clock.seconds += time.perf_counter() - Clock.began
        Clock.steps += 1


class Reference(Callback):
    """Keeps the batches that the monitor measures on; some packages train with copies of both."""

    batches: ClassVar[list[Any]] = []

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        (monitor,) = (x for x in trainer.callbacks if isinstance(x, HessianRankMonitor))
        reference = monitor._run.series.reference
        self.batches[:] = [] if reference is None else reference.batches


def eigenvalues(module: nn.Module, batches: list[Any], *, training: bool) -> np.ndarray[Any, Any]:
    """All eigenvalues of the Hessian of the mean of ``training_step`` over batches, in float64."""
    net: Any = module.double()
    net.log = net.log_dict = lambda *args, **kwargs: None
    # Done, it would have steps predict, and has lost its module; some packages take it away.
    net._trainer = trainer = getattr(net, "_trainer", None)
    if trainer is not None:
        trainer.training = True
        net._trainer = DoneTrainer(trainer)
    override = type(net).on_validation_model_eval
    is_own = override is not pl.LightningModule.on_validation_model_eval
    if not training:
        override(net) if is_own and "lightning" not in override.__module__ else net.eval()
    for part in net.modules():
        if hasattr(part, "set_experts_implementation"):  # the other ones know no float64
            part.set_experts_implementation("eager")
    own = [p for p in net.parameters() if p.requires_grad]
    state = copy.deepcopy(net.state_dict())
    held = [_padding(net, p) for p in own]
    kept = torch.cat([~mask.flatten() for mask in held])
    no_mkldnn = torch.backends.mkldnn.flags(enabled=False)
    rows = []
    for batch in batches:
        net.load_state_dict(state)
        torch.manual_seed(0)
        double = cast_batch(copy.deepcopy(batch), torch.float64, torch.device("cpu"))
        with sdpa_kernel(SDPBackend.MATH), no_mkldnn, Double():  # twice differentiable in float64
            result = net.training_step(double, 0)
        loss = result["loss"] if isinstance(result, dict) else result
        gradient = torch.autograd.grad(loss, own, create_graph=True, allow_unused=True)
        flat = torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for p, g in zip(own, gradient, strict=True)
            ]
        )
        rows.append(torch.stack([_row(x, own)[kept] for x in flat[kept]]))
    matrix = sum(rows) / len(rows)
    assert isinstance(matrix, Tensor)
    assert float((matrix - matrix.T).abs().max()) <= 1e-8 * float(matrix.abs().max())
    return np.linalg.eigvalsh(((matrix + matrix.T) / 2).numpy())


class DoneTrainer:
    """A trainer whose counters can be read when it is done."""

    global_step = current_epoch = 0

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


class Double(TorchFunctionMode):
    """Whatever a package casts to float32 stays in float64."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        func = Tensor.double if func is Tensor.float else func
        args, kwargs = tree_map(
            lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs or {})
        )
        return func(*args, **kwargs)


def _padding(net: nn.Module, parameter: nn.Parameter) -> Tensor:
    """Which entries are of an embedding's padding, whose gradient PyTorch leaves out."""
    mask = torch.zeros_like(parameter, dtype=torch.bool)
    users = [part for part in net.modules() if getattr(part, "weight", None) is parameter]
    for part in users:
        if isinstance(part, nn.Embedding) and len(users) == 1:  # tied ones have a gradient
            mask[[] if part.padding_idx is None else [part.padding_idx]] = True
    return mask


def _row(entry: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    if not entry.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in parameters])
    grads = torch.autograd.grad(
        entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.flatten() for g in grads])


def _state(module: nn.Module) -> dict[str, Any]:
    return {name: copy.deepcopy(x) for name, x in module.state_dict().items()}


def _same(a: Any, b: Any) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(
        torch.equal(x.view(torch.uint8), y.view(torch.uint8))
        if isinstance(x, Tensor) and x.dtype is not torch.bool and x.ndim
        else bool(torch.equal(x, y) if isinstance(x, Tensor) else x == y)
        for x, y in pairs
    )
