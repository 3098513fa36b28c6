"""What a row of the compatibility table is, and the modules and batches that rows vary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

REFUSED = "refused"


def numbers() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    group: str
    name: str
    build: Callable[[], Any]
    """Returns the module to fit."""
    batch: Callable[[], Any] = numbers
    monitor: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    outcome: str = "works"
    """``"works"``, or what is said; begins with ``refused`` where nothing is measured."""
    parts: bool = True
    """Whether outer-product and functional part are measured too."""


CASES: list[Case] = []


def case(group: str, name: str, **options: Any) -> Callable[[Callable[[], Any]], Any]:
    """Add a row whose module the decorated function returns."""

    def add(build: Callable[[], Any]) -> Callable[[], Any]:
        CASES.append(Case(group, name, build, **options))
        return build

    return add


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 5, 5, generator=generator), torch.tensor([0, 1, 2, 0])


def tokens() -> tuple[Tensor, Tensor]:
    return torch.tensor([[1, 2, 3], [0, 2, 2], [3, 3, 1]]), torch.tensor([0, 1, 2])


def sequences() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 4, generator=generator), torch.tensor([0, 1, 2])


class Module(pl.LightningModule):
    """Classifies; the pieces are replaced in each case."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3) if net is None else net

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.net(inputs), labels)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(*batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def network(*layers: nn.Module) -> Module:
    return Module(nn.Sequential(*layers))


def compiled_in_place() -> Module:
    module = Module()
    module.net.compile(backend="eager")
    return module


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
