"""A batch is cut only where the outputs of fewer samples are those that they had."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.network.batches import batch_size
from lightning_hessrank.subject.cutting import cut_samples
from lightning_hessrank.subject.step import module_step


def plain(net: nn.Module, b: Any) -> Tensor:
    return F.mse_loss(net(b[0]), b[1])


def flattened(net: nn.Module, b: Any) -> Tensor:
    return F.cross_entropy(net(b[0]).flatten(0, 1), b[1].flatten())


def edges(net: nn.Module, b: Any) -> Tensor:
    x, (start, end), y = b
    h = net(x)
    return F.mse_loss(h.index_add(0, end, h[start]), y)


def owners(net: nn.Module, b: Any) -> Tensor:
    nodes, owner, y = b
    f = net(nodes)
    return F.mse_loss(f.new_zeros(len(y), f.shape[1]).index_add(0, owner, f), y)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r, self.head = nn.RNN(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.r(x)[0][-1])


def packed(net: TimeFirst, b: Any) -> Tensor:
    sequence = nn.utils.rnn.pack_padded_sequence(b[0], b[1], enforce_sorted=False)
    return F.mse_loss(net.head(net.r(sequence)[1][0]), b[2])


LINEAR = nn.Linear(3, 2)
TOKENS = torch.randint(0, 2, (20, 5))
EDGES = torch.randint(0, 20, (2, 50))
OWNERS = torch.arange(20).repeat_interleave(3)
LENGTHS = torch.tensor([20, 4, 9, 20])


@pytest.mark.parametrize(
    ("net", "step", "batch", "size"),
    [
        (LINEAR, plain, (torch.randn(20, 3), torch.randn(20, 2)), 6),
        (LINEAR, flattened, (torch.randn(20, 5, 3), TOKENS), 6),
        (
            nn.Sequential(LINEAR, nn.BatchNorm1d(2)),
            plain,
            (torch.randn(20, 3), torch.randn(20, 2)),
            6,
        ),
        (LINEAR, edges, (torch.randn(20, 3), EDGES, torch.randn(20, 2)), 20),
        (LINEAR, owners, (torch.randn(60, 3), OWNERS, torch.randn(20, 2)), 60),
        (TimeFirst(), plain, (torch.randn(20, 4, 3), torch.randn(4, 2)), 20),
        (TimeFirst(), packed, (torch.randn(20, 4, 3), LENGTHS, torch.randn(4, 2)), 4),
    ],
)
def test_what_is_cut(net: nn.Module, step: Any, batch: Any, size: int) -> None:
    found = cut_samples(net, module_step(net, step), batch, 6)
    assert found.size == size == batch_size(found.batch)
    assert (found.reason is None) == (size in {4, 6})


def test_a_given_size_settles_it() -> None:
    net = TimeFirst()
    batch = torch.randn(20, 4, 3), torch.randn(4, 2)
    found = cut_samples(net, module_step(net, plain), batch, 6, size=4)
    assert found.batch is batch
    assert found.reason is None
