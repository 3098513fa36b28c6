"""Exchanged functions: the same values and gradients, and second derivatives that are right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_hessrank.subject.substitutes import TwiceDifferentiable


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
