"""The rules of the linear surrogate: aliases, uses of a bias alone, rules from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_hessrank import rank_bound
from lightning_hessrank.bounding import reference_bound
from lightning_hessrank.bounds.rules import Call, rule
from lightning_hessrank.results import BoundNotAvailableError
from lightning_hessrank.subject.step import module_step
from lightning_hessrank.subject.subject import Subject


class Through(nn.Module):
    """A linear network whose layers' outputs go through something on the way."""

    def __init__(self, through: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(9, 8), nn.Linear(8, 7), nn.Linear(7, 4)])
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.through(layer(x))
        return x


ALIASES: dict[str, Callable[[Tensor], Tensor]] = {
    "view_as itself": lambda x: x.view_as(x),
    "view": lambda x: x.view(x.shape),
    "reshape": lambda x: x.reshape(len(x), -1),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.contiguous(),
    "to": lambda x: x.to(torch.float64),
    "there and back": lambda x: x.unsqueeze(1).squeeze(1),
    "flatten": lambda x: x.flatten(1),
}


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_of_a_layers_output_is_that_output(name: str) -> None:
    x = torch.randn(20, 9)
    expected = rank_bound(Through(lambda x: x), x, data=x)
    assert expected.kind == "closed-form"
    assert rank_bound(Through(ALIASES[name]), x, data=x) == expected


@pytest.mark.parametrize("loss", [functional.cross_entropy, functional.mse_loss])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_live_network_has_the_closed_form(loss: Callable[..., Tensor], by_hand: bool) -> None:
    """The loss gets an alias of the output (see OutputRecorder), which must not hide the layer."""
    net, x, y = Through(lambda x: x), torch.randn(20, 9), torch.randn(20, 4).softmax(1)

    def step(module: nn.Module, batch: Any) -> Tensor:
        f = module(batch[0])
        if by_hand and loss is functional.cross_entropy:
            return functional.nll_loss(f.log_softmax(1), batch[1].argmax(1))
        return loss(f, batch[1])

    bound = reference_bound(Subject(net, [(x, y)], module_step(net, step)))
    expected = rank_bound(net, x, loss=loss, data=x)
    assert bound.kind == expected.kind == "closed-form"
    assert (bound.total, bound.outer, bound.functional) == (
        expected.total,
        expected.outer,
        expected.functional,
    )
    assert bound.is_theorem


class Positions(nn.Module):
    """A parameter that is only added, before an operation that has no surrogate."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Parameter(torch.randn(5, 8)), nn.LayerNorm(8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)
        self.normed = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x) if self.normed else x + self.embedding
        return self.head(self.attention(x, x, x)[0].mean(1))


@pytest.mark.parametrize(("norm", "layer"), [(False, "embedding"), (True, "norm")])
def test_a_bias_alone_before_what_has_no_surrogate(norm: bool, layer: str) -> None:
    with pytest.raises(BoundNotAvailableError) as caught:
        rank_bound(Positions(norm), torch.randn(3, 5, 8))
    assert str(caught.value) == (
        f"after layer '{layer}': attention multiplies activations with each other "
        "(multi_head_attention_forward), so the network has no linear surrogate"
    )


def test_a_rule_from_elsewhere() -> None:
    x = torch.randn(20, 9)
    net = Through(torch.sinc)
    with pytest.raises(BoundNotAvailableError, match=r"it is not linear in its inputs \(sinc\)"):
        rank_bound(net, x, data=x)

    @rule("sinc")
    def sinc(call: Call) -> Any:
        call.replaced |= {"sinc"}
        return call.identity()

    bound = rank_bound(net, x, data=x)
    expected = rank_bound(Through(lambda x: x), x, data=x)
    assert (bound.kind, bound.total) == (expected.kind, expected.total)
    assert not bound.is_theorem
    assert "which has no sinc" in bound.reason
