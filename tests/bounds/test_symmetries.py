"""Flat directions: every kind of element that has some, against singular values of the Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.api import batch_bound
from lightning_hessrank.results import BoundNotAvailableError, RankBound
from tests.nonlinear import Attention, Gated, Residual
from tests.oracles import dense_hessian, exact_ranks, symmetric_rank


class Adapted(nn.Module):
    """A weight with a product of two factors beside it."""

    def __init__(self, *, at_zero: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 3)
        self.one.weight.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(5, 2))
        if at_zero:
            self.b.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.linear(x, self.a), self.b)
        return self.two((self.one(x) + low).tanh())


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square()


def mlp(*between: nn.Module, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5, bias=bias), *between, nn.Linear(5, 3))


def evaluated(norm: nn.Module) -> nn.Module:
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm.eval()


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2),
        nn.LeakyReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def dead() -> nn.Module:
    net = mlp(nn.ReLU())
    net[0].bias.data[0] = -99.0
    return net


def shut() -> nn.Module:
    """A gated unit that never opens, one that is always open, and three that switch."""
    net = Gated(act=nn.ReLU())
    net.gate.weight.data = torch.cat([net.gate.weight.data, torch.randn(5, 1)], dim=1)
    net.up = nn.Linear(7, 5, bias=False)
    net.gate.weight.data[:2, -1] = torch.tensor([-99.0, 99.0])
    return nn.Sequential(Ones(), net)


class Ones(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones(len(x), 1)], dim=1)


def duplicate() -> nn.Module:
    net = mlp(nn.Tanh())
    for x in (net[0].weight.data, net[0].bias.data):
        x[1] = x[0]
    return net


VECTORS, IMAGES, TOKENS = (6,), (2, 4, 4), (4, 4)
#: Element, network, shape of a sample, flat directions.
ROWS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "relu": (lambda: mlp(nn.LeakyReLU()), VECTORS, 5),
    "squared relu": (lambda: mlp(Squared()), VECTORS, 5),
    "tanh": (lambda: mlp(nn.Tanh()), VECTORS, 0),
    "gelu": (lambda: mlp(nn.GELU()), VECTORS, 0),
    "channels": (cnn, IMAGES, 3 + 4 + 6 + 3),  # three units never switch: linear factors and biases
    "residual": (Residual, VECTORS, 5 + 4),
    "batch norm, evaluation": (
        lambda: mlp(evaluated(nn.BatchNorm1d(5)), nn.Tanh()), VECTORS, 2 * 5,
    ),
    "batch norm, training": (
        lambda: mlp(nn.BatchNorm1d(5, track_running_stats=False), nn.LeakyReLU()), VECTORS, 3 * 5,
    ),
    "before layer norm": (lambda: mlp(nn.LayerNorm(5), nn.Tanh()), VECTORS, 6 + 1),
    "before layer norm without eps": (
        lambda: mlp(nn.LayerNorm(5, eps=0.0), nn.Tanh()), VECTORS, 6 + 1 + 1,
    ),
    "behind layer norm": (lambda: mlp(nn.Tanh(), nn.LayerNorm(5)), VECTORS, 2 * 5 + 3),
    "gated": (Gated, VECTORS, 5),
    "factors": (lambda: Adapted(at_zero=False), VECTORS, 2 * 2),
    "factors at zero": (lambda: Adapted(at_zero=True), VECTORS, 2 * 6),
    "attention": (Attention, TOKENS, 2 * (4 + 4) + 2 * 2 + 2 * 2),
    "attention, grouped": (lambda: Attention(1), TOKENS, 4 + 4 + 2 + 2),
    "attention, rotary": (lambda: Attention(rotary=True, bias=False), TOKENS, 2 * (2 + 4)),
    "closed gate": (shut, VECTORS, (7 + 7 + 3) + 4 * 2),
    "dead unit": (dead, VECTORS, (6 + 1) + 3 + 4),
    "duplicate": (duplicate, VECTORS, 3),
}  # fmt: skip


def data_for(shape: Sequence[int], count: int = 90) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *shape), torch.randn(count, 3)


def found(model: nn.Module, x: Tensor, y: Tensor, loss: object = F.mse_loss) -> RankBound:
    return batch_bound(model, loss, (x, y), kind="symmetry")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_flat_directions_are_those_of_the_jacobian(name: str) -> None:
    torch.manual_seed(1)
    build, shape, flat = ROWS[name]
    model = build()
    x, y = data_for(shape)
    bound = found(model, x, y)
    assert bound.is_theorem
    assert (bound.kind, bound.flat_directions) == ("symmetry", flat)
    assert bound.outer == bound.num_parameters - flat
    exact = exact_ranks(model, x, F.mse_loss, y)
    assert bound.outer == exact["outer"]
    assert bound.total >= exact["total"]
    assert bound.functional >= exact["functional"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_shift_of_all_logits_is_not_seen(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=bias))
    x, y = torch.randn(90, 6), torch.randint(3, (90,))
    bound = found(model, x, y, F.cross_entropy)
    exact = exact_ranks(model, x, F.cross_entropy, y)
    assert bound.flat_directions == 5 + bias
    assert {part: getattr(bound, part) for part in ("total", "outer")} == {
        part: exact[part] for part in ("total", "outer")
    }
    assert [x.element for x in bound.explained] == ["shifts of outputs of 2"]


def test_constant_directions_are_null_for_all_parts() -> None:
    """A shift before layer norm, and inputs of low rank: nothing is left at any weights."""
    model = mlp(nn.LayerNorm(5), nn.Tanh())
    x = torch.randn(90, 4) @ torch.randn(4, 6)
    bound = found(model, x, torch.randn(90, 3))
    exact = exact_ranks(model, x, F.mse_loss, torch.randn(90, 3))
    # Each row of the first weight has two directions that the data do not see; a shift of all units
    # adds the five others, of which two are among them.
    assert bound.flat_directions == 5 * 2 + 7 - 2
    assert bound.total == bound.outer == exact["total"]


def test_a_linear_direction_becomes_null_at_a_critical_point() -> None:
    """``H ξ = -(Dξ)ᵀ ∇L`` vanishes with the gradient: here with the residuals."""
    model = mlp(nn.LeakyReLU())
    x, _ = data_for(VECTORS)
    y = model(x).detach()
    bound = found(model, x, y)
    assert bound.total == bound.outer == bound.num_parameters - 5
    assert bound.total == symmetric_rank(dense_hessian(model, F.mse_loss, [(x, y)]))


def test_a_wrong_guess_does_not_count() -> None:
    """The piece looks homogeneous to random numbers, but this network's numbers break it."""

    class Clipped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(-1e3, 2.0)  # linear for most numbers

    model = nn.Sequential(nn.Linear(6, 5, bias=False), Clipped(), nn.Linear(5, 3, bias=False))
    x, y = torch.randn(90, 6) * 3, torch.randn(90, 3)
    bound = found(model, x, y)
    assert bound.outer >= exact_ranks(model, x, F.mse_loss, y)["outer"]


def test_what_is_explained_is_in_the_table() -> None:
    x, y = data_for(VECTORS)
    text = str(batch_bound(mlp(nn.LeakyReLU()), F.mse_loss, (x, y)))
    assert "flat    directions explained by" in text
    assert "5     rescaling between 0 and 2" in text


def test_results_survive_a_checkpoint() -> None:
    bound = found(mlp(nn.LeakyReLU()), *data_for(VECTORS))
    assert RankBound.from_dict(bound.to_dict()) == bound


def test_what_has_no_symmetries_says_why() -> None:
    x, y = data_for(VECTORS)
    big = nn.Sequential(nn.Linear(6, 200), nn.Tanh(), nn.Linear(200, 3))
    with pytest.raises(BoundNotAvailableError) as caught:
        found(big, x, y)
    assert str(caught.value) == (
        "symmetries are sought for networks of up to 1,000 parameters, this one has 2,003"
    )
    with pytest.raises(ValueError, match="kind must be one of 'auto', 'batch', 'symmetry', got 3"):
        batch_bound(big, F.mse_loss, (x, y), kind=3)
