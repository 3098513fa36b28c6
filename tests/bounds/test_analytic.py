"""The generic rank of an analytic network: reached, never exceeded, and refused for others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_hessrank.api import rank_bound
from lightning_hessrank.results import BoundNotAvailableError
from tests.nonlinear import Attention, Gated
from tests.oracles import exact_ranks

NETWORKS = {
    "tanh": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "gelu, layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)),
        (4,),
    ),
    "gated": (Gated, (6,)),
    "attention": (Attention, (4, 4)),
    "attention, rotary": (lambda: Attention(rotary=True, bias=False), (4, 4)),
}


@pytest.mark.parametrize("count", [3, 12])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_reached_at_random_weights_and_not_exceeded_in_training(
    name: str, count: int
) -> None:
    build, shape = NETWORKS[name]
    model, x, y = build(), torch.randn(count, *shape), torch.randn(count, 3)
    before = [p.detach().clone() for p in model.parameters()]
    bound = rank_bound(model, x, kind="generic", data=x)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert (bound.kind, bound.is_theorem, bound.num_samples) == ("generic", True, count)
    assert bound.reason.startswith("The network is analytic in its weights and inputs")
    exact = exact_ranks(model, x, F.mse_loss, y)
    assert {part: getattr(bound, part) for part in exact} == exact
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(3):
        for _ in range(10):
            optimiser.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimiser.step()
        exact = exact_ranks(model, x, F.mse_loss, y)
        assert all(getattr(bound, part) >= exact[part] for part in exact)


def test_auto_takes_it_where_there_is_no_surrogate() -> None:
    x = torch.randn(2, 4, 4)
    bound = rank_bound(Attention(), x, data=x)
    assert (bound.kind, bound.is_theorem) == ("generic", True)


def test_softmax_cross_entropy_sees_an_output_less() -> None:
    model, x, y = Attention(), torch.randn(5, 4, 4), torch.randint(3, (5,))
    bound = rank_bound(model, x, loss="cross_entropy", kind="generic", data=x)
    exact = exact_ranks(model, x, F.cross_entropy, y)
    assert {part: getattr(bound, part) for part in exact} == exact
    assert bound.outputs == 2


def test_any_number_of_samples_is_more_than_there_are_parameters() -> None:
    model = NETWORKS["tanh"][0]()
    bound = rank_bound(model, torch.randn(1, 4), kind="generic")
    x, y = torch.randn(100, 4), torch.randn(100, 3)
    assert bound.outer == exact_ranks(model, x, F.mse_loss, y)["outer"]
    assert bound.num_samples is None


def test_what_is_not_analytic_is_said() -> None:
    class Switched(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    with pytest.raises(BoundNotAvailableError) as caught:
        rank_bound(Switched(), torch.randn(2, 4, 4), kind="generic")
    assert str(caught.value).endswith(
        "; and the network is not known to be analytic in its weights: it has Relu (ReLU and max "
        "pooling are not analytic), so that its rank at random weights bounds nothing"
    )


def test_a_network_that_is_too_large_has_the_line_of_its_surrogate() -> None:
    model = nn.Sequential(nn.Linear(4, 100), nn.Tanh(), nn.Linear(100, 3))
    assert not rank_bound(model, torch.randn(2, 4), kind="generic").is_theorem
