"""Batches of every structure."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    y: list[str]


class Slots:
    __slots__ = ("note", "x")

    def __init__(self, x: Tensor) -> None:
        self.x, self.note = x, "text"


class Node:
    """An object that knows itself."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.me = x, self


def x() -> Tensor:
    return torch.arange(8.0).reshape(4, 2)


BATCHES: list[Any] = [
    x(),
    (x(), torch.arange(4)),
    [x(), {"a": [x()], "b": None}],
    UserDict({"x": x(), "names": list("abcd")}),
    Pair(x(), torch.arange(4)),
    Frozen(x(), list("abcd")),
    Slots(x()),
    Node(x()),
    (x(), Slots(x())),
    [torch.ones(3, 5), torch.zeros(3, 5)],
]
