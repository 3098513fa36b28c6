"""Rows: kinds of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.system.rows.base import (
    REFUSED,
    Apply,
    Module,
    case,
    images,
    network,
    sequences,
    tokens,
)

LAYERS = "layer"


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells, self.head = kind(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


def encoder() -> Module:
    layer = nn.TransformerEncoderLayer(4, 1, 3, dropout=0.1, batch_first=True)
    return network(layer, nn.Flatten(), nn.Linear(8, 3))


case(LAYERS, "convolution, group norm", batch=images)(
    lambda: network(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )
)
case(LAYERS, "convolution, max pooling", batch=images)(
    lambda: network(nn.Conv2d(1, 2, 3), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(2, 3))
)
case(LAYERS, "LSTM", batch=sequences)(lambda: Module(Recurrent(nn.LSTM)))
case(LAYERS, "GRU", batch=sequences)(lambda: Module(Recurrent(nn.GRU)))
case(LAYERS, "attention", batch=sequences)(lambda: Module(Attention()))
case(LAYERS, "transformer encoder", batch=sequences)(encoder)
case(LAYERS, "embedding", batch=tokens)(
    lambda: network(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(6, 3))
)
case(LAYERS, "embedding with `padding_idx`, held fixed", batch=tokens)(
    lambda: network(nn.Embedding(4, 2, padding_idx=0), nn.Flatten(), nn.Linear(6, 3))
)
case(LAYERS, "embedding with sparse gradients", batch=tokens)(
    lambda: network(nn.Embedding(4, 2, sparse=True), nn.Flatten(), nn.Linear(6, 3))
)


case(LAYERS, "`EmbeddingBag`: products by differences", batch=tokens)(
    lambda: network(nn.EmbeddingBag(4, 2), nn.Linear(2, 3))
)
case(LAYERS, "`torch.cdist`: products by differences")(
    lambda: network(nn.Linear(4, 3), Apply(lambda x: torch.cdist(x, x)[:, :3]))
)
for mode in ("eval", "train"):
    case(LAYERS, f"batch norm, module_mode={mode!r}", monitor={"module_mode": mode})(
        lambda: network(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3))
    )
    case(LAYERS, f"dropout, module_mode={mode!r}", monitor={"module_mode": mode})(
        lambda: network(nn.Linear(4, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 3))
    )
case(LAYERS, "layer norm, GELU")(
    lambda: network(nn.Linear(4, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 3))
)
case(LAYERS, "spectral norm, weight norm, orthogonal")(
    lambda: network(
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        parametrizations.weight_norm(nn.Linear(4, 3)),
        parametrizations.orthogonal(nn.Linear(3, 3)),
    )
)
case(
    LAYERS,
    "spectral norm, module_mode='train': the vectors of its power iteration held fixed",
    monitor={"module_mode": "train"},
)(lambda: network(parametrizations.spectral_norm(nn.Linear(4, 3))))
case(LAYERS, "lazy layers")(lambda: network(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(3)))


@case(LAYERS, "tied weights")
def tied() -> Module:
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    return network(first, nn.Tanh(), last)


@case(LAYERS, "frozen layers")
def frozen() -> Module:
    return network(nn.Linear(4, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 3))


@case(LAYERS, "complex buffer")
class Rotated(Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(2), torch.tensor([0.1, 0.7])))

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        turned = torch.view_as_complex(inputs.reshape(-1, 2, 2)) * self.turn
        return super().loss(torch.view_as_real(turned).flatten(1), labels)


@case(
    LAYERS,
    "complex parameter",
    outcome=f"{REFUSED}: parameter phase is complex: the Hessian is that of real parameters; store "
    "real and imaginary part and join them with torch.view_as_complex",
)
class ComplexParameter(Module):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return super().loss((inputs * self.phase).real, labels)


@case(
    LAYERS,
    "nothing to train",
    trainer={"max_epochs": 1},
    outcome=f"{REFUSED}: NothingToTrain has no parameters that require gradients, so there is no "
    "Hessian to measure; unfreeze some, or remove the monitor",
)
class NothingToTrain(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net.requires_grad_(False)
        self.offset = nn.Parameter(torch.zeros(1), requires_grad=False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None

    def configure_optimizers(self) -> Any:
        return None
