"""Rows: kinds of batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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


class Nodes(Module):
    """Classifies the nodes of a graph."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        nodes, (start, end), labels = batch
        output = self.net(nodes)
        return F.cross_entropy(output.index_add(0, end, output[start]), labels)


def graph() -> tuple[Tensor, Tensor, Tensor]:
    x, y = numbers()
    return x, torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]]), y


WHOLE = (
    "the reference batch is taken whole, not cut to max_samples=4: the step fails on a part of it "
    "(IndexError: index 4 is out of bounds for dimension 0 with size 4); pass batch_size=... if "
    "its number of samples is not 6, or data=... with smaller batches"
)
case("batch", "graph with edges", batch=graph)(Nodes)
case("batch", "graph with edges, cut", batch=graph, monitor={"max_samples": 4}, outcome=WHOLE)(
    Nodes
)
case(
    "batch",
    "graph with edges, cut, with `batch_size`",
    batch=graph,
    monitor={"max_samples": 4, "batch_size": 1},
)(Nodes)
