"""Rows: kinds of batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from tests.system.rows.base import (
    Module,
    case,
    numbers,
)


@dataclass
class Pair:
    inputs: Tensor
    labels: Tensor


@dataclass(slots=True)
class SlotsPair:
    inputs: Tensor
    labels: Tensor


class Custom:
    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels, self.note = inputs, labels, "text"


class Named(NamedTuple):
    inputs: Tensor
    labels: Tensor


class Attributes(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch.inputs, batch.labels)


class Keys(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch["inputs"]["image"][0], batch["labels"])


case("batch", "tuple of tensors")(Module)
case(
    "batch",
    "nested dicts and lists",
    batch=lambda: {
        "inputs": {"image": [numbers()[0]]},
        "labels": numbers()[1],
        "names": list("abcdef"),
    },
)(Keys)
case("batch", "named tuple", batch=lambda: Named(*numbers()))(Attributes)
case("batch", "dataclass", batch=lambda: Pair(*numbers()))(Attributes)
case("batch", "dataclass with slots", batch=lambda: SlotsPair(*numbers()))(Attributes)
case("batch", "object of your own", batch=lambda: Custom(*numbers()))(Attributes)
