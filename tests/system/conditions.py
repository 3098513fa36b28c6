"""Conditions under which every door must give one number, or say the same: rows for `test_doors`.

Every row with a number is the same problem in other clothes, ``mean((B A x − y)²)`` with the same
values, so that every door has the same numbers for all of them; the other rows say what is wrong.
Models and batches are functions of a row's name, as the command line wants them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEASURES = frozenset({"hessian_rank", "HessianRank", "monitor", "hessrank measure"})
BOUNDS = frozenset({"rank_bound", "batch_bound", "hessrank bound"})
FUNCTIONS = frozenset({"hessian_rank", "HessianRank", "rank_bound", "batch_bound"})
DOORS = MEASURES | BOUNDS


@dataclass(frozen=True)
class Condition:
    """A row: a network, how it is called, with what, and what has to come of it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[Tensor], Any] = lambda x: x
    """What the network is given, made of the problem's inputs."""
    targets: Callable[[Tensor], Any] = lambda y: y
    call: Callable[[nn.Module, Any], Any] = lambda net, inputs: net(inputs)
    """As a ``training_step`` calls it."""
    loss: Callable[[Any, Any], Tensor] = F.mse_loss
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What the caller has switched on."""
    shapes: tuple[str, ...] = ("4",)
    """Of the inputs, as `hessrank bound` is told."""
    doors: frozenset[str] = DOORS
    """For which the row makes sense."""
    says: str = ""
    """Where there is no number: the error or warning (a regular expression)."""


CONDITIONS: dict[str, Condition] = {}


def numbers() -> tuple[Tensor, Tensor]:
    """Inputs of full rank and targets, float32, exact in half precision as the weights are."""
    g = torch.Generator().manual_seed(1)
    x, y = torch.randint(-8, 9, (9, 4), generator=g), torch.randint(-8, 9, (9, 2), generator=g)
    return x / 8, y / 8


class Chain(nn.Module):
    """Two linear layers of fixed weights; forward is what a row makes of them."""

    def __init__(self, forward: Callable[..., Tensor] | None = None, **attributes: Any) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)
        g = torch.Generator().manual_seed(2)
        for p in self.parameters():
            p.data = torch.randint(-8, 9, p.shape, generator=g) / 8
        for name, value in attributes.items():
            setattr(self, name, value)
        self.run = forward or (lambda net, x: net.two(net.one(x)))

    def forward(self, x: Any) -> Tensor:
        return self.run(self, x)


class TwoArguments(Chain):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:  # type: ignore[override]
        return self.two(self.one(torch.cat([left, right], 1)))


class Keyword(Chain):
    def forward(self, left: Tensor, *, right: Tensor, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        return scale * self.two(self.one(torch.cat([left, right], 1)))


class Optional(Chain):
    def forward(self, x: Tensor, shift: Tensor | None = None, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        return scale * self.two(self.one(x if shift is None else x + shift))


class WrongSecond(torch.autograd.Function):
    """``x³`` with the right gradient and a second derivative of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 3 * ctx.saved_tensors[0].detach() ** 2


class Asymmetric(torch.autograd.Function):
    """The identity with a gradient that is none: its derivative is not symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * torch.arange(1, grad.shape[-1] + 1, dtype=grad.dtype)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :2], x[:, 2:]


def named_halves(x: Tensor) -> dict[str, Tensor]:
    return dict(zip(("left", "right"), halves(x), strict=True))


def with_weights(y: Tensor) -> tuple[Tensor, Tensor]:
    return y, torch.ones_like(y)


def weighted(f: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    return ((f - targets[0]) ** 2 * targets[1]).mean()


def of_dict(f: Tensor, targets: dict[str, Tensor]) -> Tensor:
    return weighted(f, (targets["y"], targets["weight"]))


def cached() -> nn.Module:
    """A module that keeps its last output, with the graph that it was computed in."""
    net = Chain()
    net.last = net(numbers()[0])
    return net


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Chain()


def root_at_zero(net: Chain, x: Tensor) -> Tensor:
    """Finite outputs, whose gradient is nan: zero times that of ``√0``."""
    h = net.two(net.one(x))
    return torch.where(h > 0, h.clamp(min=0).sqrt(), 0)


def ctc(f: Tensor, y: Tensor) -> Tensor:
    """A loss over five time steps of three classes, of networks with fifteen outputs."""
    steps = f.reshape(len(f), 5, 3).transpose(0, 1).log_softmax(-1)
    lengths = torch.full((len(f),), 5), torch.full((len(f),), 2)
    return F.ctc_loss(steps, torch.ones(len(f), 2, dtype=torch.long), *lengths)


def distance(f: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(f, y, p=1.0).mean()


add = CONDITIONS.__setitem__
add("plain", Condition(Chain))
add("no_grad", Condition(Chain, around=torch.no_grad, doors=FUNCTIONS))
add("inference_mode", Condition(Chain, around=torch.inference_mode, doors=FUNCTIONS))
add("made in inference_mode", Condition(in_inference_mode, doors=FUNCTIONS))
add("a lock", Condition(lambda: Chain(lock=threading.Lock())))
add(".float() in forward", Condition(lambda: Chain(lambda net, x: net.two(net.one(x).float()))))
add(
    "a plain tensor attribute",
    Condition(lambda: Chain(lambda net, x: net.two(net.one(x) @ net.eye), eye=torch.eye(3))),
)
add("an attribute with a graph", Condition(cached))
add(
    "tuple inputs",
    Condition(TwoArguments, halves, call=lambda net, x: net(*x), shapes=("2", "2")),
)
add(
    "a tuple as one argument",
    Condition(
        lambda: Chain(lambda net, x: net.two(net.one(torch.cat(x, 1)))),
        halves,
        doors=DOORS - {"hessrank bound"},
    ),
)
add(
    "dict inputs",
    Condition(
        TwoArguments, named_halves, call=lambda net, x: net(**x), doors=DOORS - {"hessrank bound"}
    ),
)
add(
    "a dict as one argument",
    Condition(
        lambda: Chain(lambda net, x: net.two(net.one(torch.cat([x["left"], x["right"]], 1)))),
        named_halves,
        doors=DOORS - {"hessrank bound"},
    ),
)
add(
    "positional and keyword arguments",
    Condition(
        Keyword, named_halves, call=lambda net, x: net(**x), doors=DOORS - {"hessrank bound"}
    ),
)
add("optional arguments, one given", Condition(Optional))
add(
    "optional arguments, two given",
    Condition(
        Optional, lambda x: (x, torch.zeros_like(x)), call=lambda net, x: net(*x), shapes=("4", "4")
    ),
)
add(
    "tuple targets",
    Condition(Chain, targets=with_weights, loss=weighted, doors=DOORS - {"hessrank bound"}),
)
add(
    "tuple inputs and targets",
    Condition(
        TwoArguments,
        halves,
        with_weights,
        call=lambda net, x: net(*x),
        loss=weighted,
        doors=DOORS - {"hessrank bound"},
    ),
)
add(
    "dict targets",
    Condition(
        Chain,
        targets=lambda y: {"y": y, "weight": torch.ones_like(y)},
        loss=of_dict,
        doors=DOORS - {"hessrank bound"},
    ),
)
add("half precision", Condition(lambda: Chain().half(), Tensor.half, Tensor.half))

# -- no number -------------------------------------------------------------------------------------
# The batch bound asks for first derivatives only, and a linear surrogate has no such functions:
# both may have a bound where there is no second derivative.
add(
    "wrong second derivative",
    Condition(
        lambda: Chain(lambda net, x: net.two(WrongSecond.apply(net.one(x)))),
        doors=MEASURES,
        says="disagrees with finite differences.*custom autograd functions WrongSecond",
    ),
)
add(
    "asymmetric products",
    Condition(
        lambda: Chain(lambda net, x: net.two(Asymmetric.apply(net.one(x)))),
        doors=MEASURES,
        says="custom autograd functions Asymmetric",
    ),
)
add(
    "no second derivative: CTC",
    Condition(
        lambda: nn.Linear(4, 15),
        loss=ctc,
        doors=frozenset({"HessianRank"}),  # the others take differences
        says="ctc_loss has no second derivative in PyTorch.*cannot be computed",
    ),
)
add(
    "no second derivative: cdist",
    Condition(
        Chain,
        loss=distance,
        doors=frozenset({"HessianRank"}),  # the others take differences
        says="cdist has no second derivative in PyTorch.*cannot be computed",
    ),
)
add(
    "signals that are not finite",
    Condition(
        lambda: Chain(
            lambda net, x: torch.where(net.one(x)[:, :2] > 0, net.two(net.one(x) * 0).sqrt(), 0)
        ),
        doors=MEASURES | {"batch_bound"},
        says="not finite",
    ),
)


class Lit(pl.LightningModule):
    """A row as a module in training; nothing moves, for the learning rate is zero."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net, self.name = CONDITIONS[name].build(), name

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        condition, (inputs, targets) = CONDITIONS[self.name], batch
        return condition.loss(condition.call(self.net, inputs), targets)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def network(name: str) -> nn.Module:
    return CONDITIONS[name].build()


def batch(name: str) -> tuple[Any, Any]:
    x, y = numbers()
    return CONDITIONS[name].inputs(x), CONDITIONS[name].targets(y)
