"""Rows: what a step changes, what its hooks refer to, and what evaluation mode computes."""

from __future__ import annotations

import collections
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.system.rows.base import REFUSED, Module, case

STATE = "state"


@case(STATE, "frozen parameter, changed in the step")
class Warms(Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.Parameter(torch.zeros(()), requires_grad=False)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            self.calls.add_(1)
        return super().loss(inputs, labels) * (1 - 0.9**self.calls)


class Annealer:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return self.calls / (self.calls + 3)


@case(STATE, "plain object with a counter, in a list")
class Anneals(Module):
    def __init__(self) -> None:
        super().__init__()
        self.annealers = [Annealer()]

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return super().loss(inputs, labels) * self.annealers[0]()


@case(STATE, "deque of tensors")
class Queues(Module):
    def __init__(self) -> None:
        super().__init__()
        self.queue = collections.deque([torch.zeros(4)], maxlen=4)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.queue.append(inputs.mean(0))
        return super().loss(inputs + torch.stack(tuple(self.queue)).mean(0), labels)


@case(STATE, "weights normalised in place by the step")
class Normalises(Module):
    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            self.net.weight.copy_(F.normalize(self.net.weight, dim=1))
        return super().loss(inputs, labels)


REFERENCE = "reference to the module"


@case(REFERENCE, "hook that closes over it")
class Catches(Module):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
        self.features: dict[str, Tensor] = {}
        self.net[1].register_forward_hook(lambda m, i, o: self.features.update(tanh=o))

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.net(inputs)
        return F.cross_entropy(self.net[2](self.features["tanh"]), labels)


class Child(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, x: Tensor) -> Any:
        return self.parent().net(x)  # type: ignore[union-attr]


@case(REFERENCE, "weak reference of a part")
class Looped(Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = Child(self)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.child(inputs), labels)


@case(REFERENCE, "scripted part (its own operations are not seen)")
class Scripted(Module):
    def __init__(self) -> None:
        body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh())
        super().__init__(nn.Sequential(torch.jit.script(body), nn.Linear(5, 3)))


# -- evaluation mode ---------------------------------------------------------------------------

MODE = "evaluation mode"


class Doubles(Module):
    """Starts from nothing, where the loss is log 3."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return super().loss(inputs, labels) * (1 if self.training else 2)


DOUBLED = (
    "the loss on the reference data is 2.19722 in evaluation mode, which is measured, but 1.09861 "
    "as training computes it (dropout and batch norm aside): the module computes something else in "
    "evaluation mode; pass module_mode='train' to measure the function that is trained"
)
case(MODE, "computes another loss", outcome=DOUBLED)(Doubles)
case(MODE, "computes another loss, `module_mode='train'`", monitor={"module_mode": "train"})(
    Doubles
)


class Detects(Module):
    """Returns losses in training, boxes else."""

    def loss(self, inputs: Tensor, labels: Tensor) -> Any:
        boxes = self.net(inputs)
        found: Any = {"box": F.cross_entropy(boxes, labels)} if self.training else [boxes]
        return sum(found.values())


case(
    MODE,
    "the step runs in training mode only",
    outcome=f"{REFUSED}: the step runs in training mode, but not in evaluation mode, in which it "
    "is measured (AttributeError: 'list' object has no attribute 'values'); pass "
    "module_mode='train' to the monitor",
)(Detects)
case(
    MODE,
    "the step runs in training mode only, `module_mode='train'`",
    monitor={"module_mode": "train"},
)(Detects)
