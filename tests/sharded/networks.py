"""Sharded networks, the data of their processes, and the same networks unsharded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.checkpoint import checkpoint

SAMPLES = 9
"""That no number of shares divides: means over shares are not the mean over samples."""


class MLP(nn.Module):
    """Three layers; five rows and three do not divide evenly among processes."""

    def __init__(self, width: int = 5, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 3)
        self.last = nn.Linear(3, 3)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        if self.checkpointed:
            return self.last(checkpoint(self._middle, x, use_reentrant=False))
        return self.last(self._middle(x))

    def _middle(self, x: Tensor) -> Tensor:
        return self.second(x).tanh()


class Tied(nn.Module):
    """One weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.outer.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.outer(self.inner(x).tanh()).tanh())


class Statistics(nn.Module):
    """Batch norm and dropout, whose state a pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(self.first(x)).tanh()))


def frozen() -> MLP:
    net = MLP()
    net.first.requires_grad_(False)
    return net


BUILD: dict[str, Callable[[], nn.Module]] = {
    "plain": MLP,
    "tied": Tied,
    "frozen": frozen,
    "checkpointed": lambda: MLP(checkpointed=True),
    "statistics": Statistics,
    "accumulated": MLP,
    "single": MLP,
    "bfloat16": MLP,
    "float16": MLP,
    "autocast": MLP,
    "hybrid": MLP,
    "tensor": lambda: MLP(4),
}
#: That train in float32, or compute in less.
SINGLE = ("single", "bfloat16", "float16", "autocast")
#: What FSDP casts parameters to.
POLICIES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def build(name: str) -> nn.Module:
    """The network of a case, float32, always with the same weights."""
    torch.manual_seed(3)
    return BUILD[name]()


def precision(name: str) -> torch.dtype:
    """That the network trains in."""
    return torch.float32 if name in SINGLE else torch.float64


def shard(net: Any, mesh: DeviceMesh, name: str) -> None:
    """Apply ``fully_shard``, layer by layer where weights are not tied; 2-d meshes split layers."""
    options: dict[str, Any] = {"mesh": mesh["data_parallel"] if name == "tensor" else mesh}
    if name == "tensor":
        plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        parallelize_module(net, mesh["tensor_parallel"], plan)
    if name in POLICIES:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=POLICIES[name])
    if name != "tied":
        for layer in net.children():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, **options)
    fully_shard(net, **options)


def data(dtype: torch.dtype = torch.float64, shares: int = 2) -> list[tuple[Tensor, Tensor]]:
    """A batch for each share of the data."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (SAMPLES,), generator=generator)
    pairs = zip(inputs.to(dtype).tensor_split(shares), labels.tensor_split(shares), strict=True)
    return list(pairs)
