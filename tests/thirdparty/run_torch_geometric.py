"""PyTorch Geometric: node classification by three kinds of convolution, on one random graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GATConv, GCNConv, GINConv

from tests.thirdparty.common import Case, Wrapped, fitted, run_all


class Net(nn.Module):
    """Two convolutions with an ELU between them."""

    def __init__(self, conv: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = conv(5, 6), conv(6, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(F.elu(self.first(x, edges)), edges)


def step(net: nn.Module, graph: Any) -> Tensor:
    """Cross-entropy of the nodes that are labelled."""
    return F.cross_entropy(net(graph.x, graph.edge_index)[graph.known], graph.y[graph.known])


def graph(conv: Callable[[int, int], nn.Module]) -> tuple[Any, Any]:
    """19 nodes and 60 edges, both ways."""
    generator = torch.Generator().manual_seed(1)
    edges = torch.randint(0, 19, (2, 60), generator=generator)
    x, y = torch.randn(19, 5, generator=generator), torch.arange(19) % 3
    data = Data(x, torch.cat([edges, edges.flip(0)], 1), y=y, known=torch.arange(19) < 12)
    return Wrapped(Net(conv), step), DataLoader([data], 1)


KINDS: dict[str, Callable[[int, int], nn.Module]] = {
    "GCN": GCNConv,
    "GAT": GATConv,
    "GIN": lambda a, b: GINConv(nn.Sequential(nn.Linear(a, 4), nn.Tanh(), nn.Linear(4, b))),
}
CASES = [
    Case("torch_geometric", name, fitted(lambda conv=conv: graph(conv)))  # type: ignore[misc]
    for name, conv in KINDS.items()
]

if __name__ == "__main__":
    run_all(CASES)
