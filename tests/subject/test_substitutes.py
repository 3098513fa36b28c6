"""Exchanged functions: the same values and gradients, and second derivatives that are right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_hessrank import hessian_rank, rank_bound
from lightning_hessrank.subject.substitutes import TwiceDifferentiable
from tests.oracles import exact_rank


def second(value: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Hessian of a scalar by one tensor, row by row."""
    (gradient,) = torch.autograd.grad(value, at, create_graph=True)
    rows = [torch.autograd.grad(g, at, retain_graph=True)[0].flatten() for g in gradient.flatten()]
    return torch.stack(rows)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm(dim: int | None) -> None:
    v = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    g = torch.norm_except_dim(v.detach(), 2, -1 if dim is None else dim) * 1.5
    with TwiceDifferentiable():
        w = torch._weight_norm(v, g, -1 if dim is None else dim)
    by_hand = v * g / (v.norm() if dim is None else v.norm(dim=1 - dim, keepdim=True))
    torch.testing.assert_close(w, by_hand)
    torch.testing.assert_close(second((w**3).sum(), v), second((by_hand**3).sum(), v))


@pytest.mark.parametrize("sparse", [False, True])
def test_embedding(sparse: bool) -> None:
    table = nn.Embedding(4, 2, sparse=sparse).double()
    with TwiceDifferentiable():
        value = (table(torch.tensor([0, 2, 2])) ** 3).sum()
        by_name = F.embedding(torch.tensor([0, 2, 2]), table.weight, sparse=sparse)
    torch.testing.assert_close((by_name**3).sum(), value)
    used = torch.tensor([1.0, 0, 2, 0], dtype=torch.float64)[:, None]
    expected = (6 * used * table.weight.detach()).flatten().diag()
    torch.testing.assert_close(second(value, table.weight), expected)


@pytest.mark.parametrize("inplace", [False, True])
def test_hardsigmoid(inplace: bool) -> None:
    x = torch.linspace(-4, 4, 21, dtype=torch.float64, requires_grad=True)
    with TwiceDifferentiable():
        h = x * 1
        y = F.hardsigmoid(h, inplace=inplace)
    assert (y is h) == inplace
    torch.testing.assert_close(y, F.hardsigmoid(x))
    inside = (x.detach().abs() < 3).double()
    torch.testing.assert_close(second((y**3).sum(), x), (6 * y * inside / 36).detach().diag())


def test_what_a_surrogate_replaces_is_not_exchanged_before() -> None:
    """So a hard sigmoid is an activation like others: no constant, and the closed form applies."""
    layers = nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)
    bound = rank_bound(nn.Sequential(layers[0], nn.Hardsigmoid(), layers[1]), torch.zeros(1, 4))
    plain = rank_bound(nn.Sequential(*layers), torch.zeros(1, 4))
    assert (bound.kind, bound.total, bound.outer) == ("closed-form", plain.total, plain.outer)
    assert not bound.is_theorem


@pytest.mark.usefixtures("double_precision")
def test_a_network_with_hard_sigmoids_has_exact_products() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Hardsigmoid(), nn.Linear(5, 3))
    x, y = torch.randn(12, 4), torch.randn(12, 3)
    found = hessian_rank(net, F.mse_loss, (x, y))
    written = nn.Sequential(net[0], Written(), net[2])
    assert found.products == "autograd"
    assert found.rank == exact_rank(written, F.mse_loss, x, y)


class Written(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 3).clamp(0, 6) / 6


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this version of PyTorch has none")
@pytest.mark.parametrize(
    ("a", "b", "ends"),
    [
        ((12, 8), (3, 8, 4), [4, 4, 12]),  # rows in groups, one of them empty
        ((3, 8, 8), (8, 12), [4, 8, 12]),  # columns in groups
        ((4, 12), (12, 8), [4, 8, 12]),  # both, summed over
        ((3, 8, 8), (3, 8, 4), None),
    ],
)
def test_grouped_mm(a: tuple[int, ...], b: tuple[int, ...], ends: list[int] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(shape, generator=generator) for shape in (a, b))
    offs = None if ends is None else torch.tensor(ends, dtype=torch.int32)

    def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with TwiceDifferentiable():
            return F.grouped_mm(x, y, offs=offs)

    torch.testing.assert_close(product(one, two), F.grouped_mm(one, two, offs=offs))
    inputs = [x.double().requires_grad_() for x in (one, two)]
    assert torch.autograd.gradgradcheck(product, inputs)
