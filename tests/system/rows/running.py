"""Rows: precision, compilation, and attributes that are hard to copy."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from tests.system.rows.base import (
    REFUSED,
    Module,
    case,
    compiled_in_place,
)

PRECISION = "precision"

for precision in ("bf16-mixed", "bf16-true", "64-true"):
    case(PRECISION, f"`Trainer(precision={precision!r})`", trainer={"precision": precision})(Module)


@case(PRECISION, "`.float()`, `.half()`, float32 constants in the step")
class CastsDown(Module):
    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        scale = torch.tensor(0.7, dtype=torch.float32) * torch.from_numpy(np.ones(3, "float32"))
        logits = self.net(inputs.to(torch.float32)).float() * scale
        return F.cross_entropy(logits.half().to(torch.float32), labels)


@case(PRECISION, "autocast in the step")
class Autocasts(Module):
    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().loss(inputs, labels)


@case(PRECISION, "complex64 buffer filled in the step")
class FillsComplex(Module):
    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.net(inputs))
        kept = torch.zeros(spectrum.shape, dtype=torch.cfloat)
        kept[:, :2] = spectrum[:, :2]
        return F.cross_entropy(torch.fft.irfft(kept, n=3), labels)


@case(
    PRECISION,
    "float32 buffer filled in the step",
    outcome=f"{REFUSED}: copy_ in the step turns torch.float64 into torch.float32, and a rank "
    "counted from that would be wrong; remove the cast, or pass loss_fn=... (loss_fn(module, "
    "batch) -> scalar loss)",
)
class Fills(Module):
    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = self.net(inputs)
        return F.cross_entropy(torch.FloatTensor(*logits.shape).copy_(logits), labels)


# -- how the module is run ---------------------------------------------------------------------

EXECUTION = "execution"

case(EXECUTION, "`torch.compile` of the LightningModule")(
    lambda: torch.compile(Module(), backend="eager")
)
case(EXECUTION, "`torch.compile` of a submodule")(
    lambda: Module(torch.compile(nn.Linear(4, 3), backend="eager"))
)
case(EXECUTION, "`module.compile()`")(compiled_in_place)


# -- attributes --------------------------------------------------------------------------------

ATTRIBUTES = "attribute"


class Holds(Module):
    """Uses an attribute in its step that is hard to copy."""

    def __init__(self, held: Any, use: Callable[[Any], object]) -> None:
        super().__init__()
        self.held, self.use = held, use

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        factor = self.use(self.held)
        scale = factor if isinstance(factor, (float, Tensor)) else 1.0
        return scale * super().loss(inputs, labels)


def scratch_file() -> Any:
    return tempfile.TemporaryFile("w")


def locked(lock: Any) -> None:
    with lock:
        pass


case(ATTRIBUTES, "lock")(lambda: Holds(threading.Lock(), locked))
case(ATTRIBUTES, "open file, written to")(
    lambda: Holds(scratch_file(), lambda file: file.write("step"))
)
case(ATTRIBUTES, "`SummaryWriter`, written to (the copy's is silent)")(
    lambda: Holds([SummaryWriter(tempfile.mkdtemp())], lambda held: held[0].add_scalar("loss", 1.0))
)
case(ATTRIBUTES, "torch generator, drawn from")(
    lambda: Holds(torch.Generator(), lambda held: torch.rand((), generator=held))
)
case(ATTRIBUTES, "numpy generator, drawn from")(
    lambda: Holds(np.random.default_rng(0), lambda held: float(held.random()))
)
case(
    ATTRIBUTES,
    "Python generator, drawn from",
    outcome=f"{REFUSED}: the step draws from a Python generator that is an attribute of the "
    "module: it cannot be copied, and measuring must not advance it; pass loss_fn=... to the "
    "monitor (loss_fn(module, batch) -> scalar loss)",
)(lambda: Holds((float(i) for i in itertools.count(1)), next))
case(ATTRIBUTES, "tensor of an earlier graph, unused")(
    lambda: Holds(torch.ones(2, requires_grad=True) * 2, id)
)
case(
    ATTRIBUTES,
    "tensor of an earlier graph, used",
    outcome="the rank is nan, first at step 0: the loss is nan at a finite output",
)(lambda: Holds(torch.ones((), requires_grad=True) * 2, lambda held: held.detach()))
