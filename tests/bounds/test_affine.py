"""Bounds of the functional part where outputs are affine in some parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.api import batch_bound
from tests.oracles import exact_ranks, matrix_rank


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 60])
@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_one_hidden_layer_is_exact(count: int, slope: float) -> None:
    """``rank(H_f) = 2 Σ_i rank(Σ_n σ'_i(n) r_n x̃_nᵀ)``, from the closed form itself."""
    net = nn.Sequential(nn.Linear(5, 7), nn.LeakyReLU(slope), nn.Linear(7, 3))
    x, y = torch.randn(count, 5), torch.randn(count, 3)
    r, ones = net(x) - y, torch.ones(count, 1)
    slopes = torch.where(net[0](x) > 0, 1.0, slope)
    moments = torch.einsum("ni,nk,nd->ikd", slopes, r, torch.cat([x, ones], 1))
    closed = 2 * sum(matrix_rank(m.detach()) for m in moments)
    bound = batch_bound(net, F.mse_loss, (x, y))
    exact = exact_ranks(net, x, F.mse_loss, y)
    assert bound.functional == closed == exact["functional"]


def test_symmetries_outside_the_last_layer_are_subtracted() -> None:
    """``2 (p - |S|) - s``: 290 of section 6's network, ``2 (342 - 192) - 10``."""
    layers = [nn.Linear(a, b, bias=False) for a, b in ((16, 12), (12, 10), (10, 3))]
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    x, y = torch.randn(400, 16), torch.randn(400, 3)
    bound = batch_bound(net, F.mse_loss, (x, y))
    assert (bound.outer, bound.functional, bound.total) == (320, 290, 342)
    assert bound.sources == {"total": "batch", "outer": "symmetry", "functional": "affine"}


@pytest.mark.parametrize("seed", range(12))
def test_it_is_never_below_the_exact_rank(seed: int) -> None:
    torch.manual_seed(seed)
    widths = torch.randint(2, 7, (3,)).tolist()
    activation = [nn.ReLU, nn.LeakyReLU, nn.Tanh][seed % 3]
    layers: list[nn.Module] = [nn.Linear(4, widths[0])]
    for a, b in zip(widths, [*widths[1:], 2], strict=True):
        layers += [activation(), nn.Linear(a, b)]
    net = nn.Sequential(*layers)
    x = torch.randn(int(torch.randint(1, 30, ())), 4)
    y = torch.randint(2, (len(x),))
    bound = batch_bound(net, F.cross_entropy, (x, y))
    exact = exact_ranks(net, x, F.cross_entropy, y)
    assert all(getattr(bound, part) >= exact[part] for part in exact)


def test_a_block_that_bends_is_left_alone() -> None:
    """Where the head is not the last thing that the outputs see, no layer is affine."""

    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).tanh()).tanh()

    net, x, y = Bent(), torch.randn(40, 4), torch.randn(40, 2)
    bound = batch_bound(net, F.mse_loss, (x, y))
    assert bound.sources["functional"] == "batch"
    assert bound.functional >= exact_ranks(net, x, F.mse_loss, y)["functional"]
