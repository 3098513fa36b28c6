"""Bounds of networks that cannot run on two samples, and of those whose samples see each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank import BoundNotAvailableError, rank_bound
from lightning_hessrank.bounding import reference_bound
from lightning_hessrank.measure import measure
from lightning_hessrank.subject.step import module_step
from lightning_hessrank.subject.subject import Subject


class Mixer(nn.Module):
    """Reshapes with a batch size that is written into it."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.a, self.b, self.samples = nn.Linear(2, 3), nn.Linear(6, 2), samples

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.view(self.samples, 2, 2).transpose(1, 2)).transpose(1, 2)
        return self.b(h.flatten(1))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("samples", [3, 15])
def test_a_batch_size_in_the_code_changes_no_bound(samples: int, given: bool) -> None:
    x = torch.randn(samples, 4)
    fixed, free = (rank_bound(Mixer(n), x, data=x if given else None) for n in (samples, -1))
    assert (fixed.total, fixed.outer, fixed.functional) == (free.total, free.outer, free.functional)
    assert fixed.is_theorem


def added(h: Tensor, edges: Tensor) -> Tensor:
    return h.index_add(0, edges[1], h[edges[0]])


def added_into_a_copy(h: Tensor, edges: Tensor) -> Tensor:
    return h.clone().index_add_(0, edges[1], h[edges[0]])


def added_into_zeros(h: Tensor, edges: Tensor) -> Tensor:
    total, degree = torch.zeros_like(h).detach(), torch.zeros(len(h)).to(h)
    degree.index_add_(0, edges[1], torch.ones_like(edges[1]).to(h))
    target = edges[1][:, None].expand(-1, h.shape[1])
    total.scatter_add_(0, target, degree[edges[0], None] * h[edges[0]])
    return total.mul_(torch.linspace(1, 2, len(h)).to(h)[:, None])


class Graph(nn.Module):
    def __init__(self, aggregate: Callable[[Tensor, Tensor], Tensor] = added) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False)
        self.aggregate = aggregate

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.b(self.aggregate(self.a(x), edges))


def regression(net: nn.Module, b: Any) -> Tensor:
    return F.mse_loss(net(b[0], b[1]), b[2])


def classification(net: nn.Module, b: Any) -> Tensor:
    return F.cross_entropy(net(b[0], b[1]), b[2].argmax(1))


@pytest.mark.parametrize("step", [regression, classification])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("aggregate", [added, added_into_a_copy, added_into_zeros])
def test_a_graph_is_bounded_on_its_own_data(
    step: Callable[..., Tensor], rank: int, aggregate: Callable[[Tensor, Tensor], Tensor]
) -> None:
    x = torch.randn(10, rank) @ torch.randn(rank, 3)
    batch = x, torch.randint(0, 10, (2, 25)), torch.randn(10, 3)
    net = Graph(aggregate)
    subject = Subject(net, [batch], module_step(net, step))
    with torch.autograd.set_detect_anomaly(True):
        bound = reference_bound(subject)
    ranks = measure(subject)
    assert bound.is_theorem
    found = [ranks.parts[part].rank for part in ("total", "outer", "functional")]
    limits = [bound.total, bound.outer, bound.functional]
    assert all(r <= b for r, b in zip(found, limits, strict=True))
    assert found[0] == limits[0]
    # Aggregation is linear: the ranks are those of a chain on the aggregated inputs.
    aggregated = aggregate(batch[0], batch[1])
    chain = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
    loss = "mse" if step is regression else "cross_entropy"
    expected = rank_bound(chain, x, data=aggregated, loss=loss)
    assert limits == [expected.total, expected.outer, expected.functional]


def test_without_data_samples_must_not_mix() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x - x.mean(0))

    x = torch.randn(6, 3)
    with pytest.raises(BoundNotAvailableError, match="depends on other samples"):
        rank_bound(Mean(), x)
    assert rank_bound(Mean(), x, data=x).total == 8  # the whole network: 2 (3 + 1) parameters


def test_a_network_that_runs_on_nothing_else_says_so() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            if float(x.detach().abs().max()) < 100:
                raise OverflowError("too small")
            return self.a(x)

    with pytest.raises(
        BoundNotAvailableError, match=r"does not run on 6 random samples.*too small"
    ):
        rank_bound(Picky(), 1e4 * torch.randn(6, 3))
    with pytest.raises(OverflowError, match="too small"):  # it does not run on its own inputs
        rank_bound(Picky(), torch.randn(6, 3))


def by_where(h: Tensor) -> Tensor:
    return torch.where(h > 0, h, torch.zeros_like(h))


def in_place(h: Tensor) -> Tensor:
    h = h.clone()
    h[h < 0] = 0
    return h


@pytest.mark.parametrize(
    "activation",
    [
        by_where,
        in_place,
        lambda h: h * (h > 0),
        lambda h: h * (h > 0).to(h.dtype),
        lambda h: torch.where(h > 0, h, 0.1 * h),
        lambda h: torch.where((h > 0) & (h < 2), h, 0.1 * h),
        lambda h: h.masked_fill(h < 0, 0.0),
        lambda h: h * torch.sigmoid(h),
        lambda h: (h + h.abs()) / 2,
    ],
)
def test_activations_by_hand_are_activations(activation: Callable[[Tensor], Tensor]) -> None:
    class Chain(nn.Module):
        def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5, bias=False), nn.Linear(5, 2, bias=False)
            self.f = f

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.f(self.a(x)))

    x, y = torch.randn(20, 4), torch.randn(20, 2)
    expected = rank_bound(Chain(F.relu), x, data=x)
    found = rank_bound(Chain(activation), x, data=x)
    assert (found.total, found.is_theorem) == (expected.total, False) == (24, False)
    net = Chain(activation)
    step = module_step(net, lambda m, b: F.mse_loss(m(b[0]), b[1]))
    assert reference_bound(Subject(net, [(x, y)], step)).total == 24


def test_a_choice_between_two_activations_has_no_stand_in() -> None:
    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.a(x), self.b(x)
            return torch.where(one > 0, one, two)

    with pytest.raises(BoundNotAvailableError, match="where activations are large or small"):
        rank_bound(Choice(), torch.randn(5, 4))


def test_targets_keep_their_values() -> None:
    def step(net: nn.Module, b: Any) -> Tensor:
        assert bool(((b[1] == 0) | (b[1] == 1)).all())
        return F.binary_cross_entropy(torch.sigmoid(net(b[0])), b[1])

    net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False))
    batch = torch.randn(30, 5), (torch.randn(30, 3) > 0).float()
    bound = reference_bound(Subject(net, [batch], module_step(net, step)))
    assert (bound.total, bound.is_theorem) == (30, True)


@pytest.mark.parametrize("nodes", [1, 3])
def test_graphs_of_several_nodes_are_bounded_on_their_own_data(nodes: int) -> None:
    """The sum over a graph's nodes is what a chain on the sums of their features gives."""
    x, y = torch.randn(8 * nodes, 3), torch.randn(8, 2)
    owner = torch.arange(8).repeat_interleave(nodes)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))

    def step(module: nn.Module, b: Any) -> Tensor:
        f = module(b[0])
        pooled = f.new_zeros(int(b[1].max()) + 1, 2).index_add(0, b[1], f)
        return F.mse_loss(pooled, b[2])

    subject = Subject(net, [(x, owner, y)], module_step(net, step), sizes=[8])
    bound = reference_bound(subject)
    sums = x.reshape(8, nodes, 3).sum(1)
    expected = rank_bound(net, sums, data=sums)
    assert bound.is_theorem
    assert (bound.total, bound.outer, bound.functional) == (
        expected.total,
        expected.outer,
        expected.functional,
    )
