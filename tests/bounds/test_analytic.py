"""The generic rank of an analytic network: reached, never exceeded, and refused for others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_hessrank.api import rank_bound
from lightning_hessrank.bounding import reference_bound
from lightning_hessrank.results import BoundNotAvailableError
from lightning_hessrank.subject.step import model_step
from lightning_hessrank.subject.subject import Subject
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


def test_without_data_samples_must_not_mix() -> None:
    class Mixed(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = super().forward(x)
            return z - z.tanh().mean(0)

    x = torch.randn(3, 4, 4)
    assert rank_bound(Mixed(), x, kind="generic", data=x).is_theorem
    with pytest.raises(BoundNotAvailableError, match="depends on other samples"):
        rank_bound(Mixed(), x, kind="generic")


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


class Tokens(nn.Module):
    """Scaled embeddings of tokens, through a smooth unit."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.place = nn.Parameter(torch.randn(2, 3))
        self.head = nn.Linear(3, 2)

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens) * scale[:, :, None] + self.place
        return self.head(hidden.softmax(2).mean(1))


@pytest.mark.usefixtures("double_precision")
def test_the_rank_for_the_tokens_of_one_batch_is_no_bound_for_others() -> None:
    model, scale, y = Tokens(), torch.randn(6, 2), torch.randn(6, 2)
    first = torch.zeros(6, 2, dtype=torch.long), scale
    others = torch.randint(4, (6, 2)), scale

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, scale: torch.Tensor) -> torch.Tensor:
            return self.model(others[0], scale)

    bound = rank_bound(model, first, data=first, kind="generic")
    assert bound.is_theorem  # for these
    assert exact_ranks(Given(), scale, F.mse_loss, y)["total"] > bound.total
    for options in ({}, {"data": others}, {"data": [first, others]}):
        with pytest.raises(BoundNotAvailableError, match=r"integers \(tokens\) of a batch"):
            rank_bound(model, first, kind="generic", **options)


@pytest.mark.usefixtures("double_precision")
def test_integers_that_the_outputs_do_not_depend_on_are_no_obstacle() -> None:
    """Labels, in the step that the monitor bounds on several batches."""
    model = Attention()
    batches = [(torch.randn(3, 4, 4), torch.randint(3, (3,))) for _ in range(2)]
    subject = Subject(model, batches, model_step(F.cross_entropy))
    bound = reference_bound(subject)
    assert (bound.kind, bound.is_theorem) == ("generic", True)
    subject.release()


@pytest.mark.parametrize("kind", ["auto", "generic"])
def test_a_network_of_tokens_only_is_refused_in_words(kind: str) -> None:
    class OfTokens(Tokens):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().forward(tokens, torch.ones(tokens.shape))

    tokens = torch.randint(4, (6, 2))
    with pytest.raises(BoundNotAvailableError, match="the network has no floating-point inputs"):
        rank_bound(OfTokens(), tokens, data=tokens, kind=kind)
