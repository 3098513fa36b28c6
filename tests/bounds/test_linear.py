"""Networks for which a bound was once too small, or lost its theorem for no reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_hessrank.api import batch_bound, rank_bound
from lightning_hessrank.bounding import network_of
from lightning_hessrank.bounds.linear import linear_bound
from lightning_hessrank.network.function import Network
from lightning_hessrank.network.losses import loss_kind
from lightning_hessrank.results import BoundNotAvailableError
from tests.oracles import exact_rank, exact_ranks
from tests.slow import first


@pytest.mark.parametrize("kind", ["generic", "patch"])
@pytest.mark.parametrize(
    ("middle", "total"), [((), 156), ((nn.Upsample(scale_factor=2),), 116)], ids=["plain", "up"]
)
@pytest.mark.parametrize("seed", first(1, range(4)))
def test_an_ill_conditioned_network_is_not_undercounted(
    seed: int, middle: tuple[nn.Module, ...], total: int, kind: Any
) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1, bias=False),
        nn.Conv2d(3, 2, 1, 1, 1),
        nn.ConvTranspose2d(2, 4, 3, 2, bias=False),
        nn.BatchNorm2d(4),
        *middle,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3, bias=False),
    ).eval()
    x = torch.randn(5, 1, 6, 6)
    bound = linear_bound(module_network(model, x), MSE, data=(x,), kind=kind, seed=seed)
    assert bound.functional >= total - 5 * (not middle)
    assert bound.total == total if kind == "generic" else bound.total >= total


MSE = loss_kind("mse")


def module_network(module: nn.Module, example: Tensor) -> Network:
    """See a module, as it is, as a function of its inputs."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return network_of(lambda batch: (module(batch),), example, len(example), parameters)


class Clamped(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.clamp(-0.2, 0.2)


def clamped(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Clamped())
    return layer


@pytest.mark.parametrize(
    ("change", "function"), [(parametrizations.orthogonal, "rdiv"), (clamped, "clamp")]
)
def test_weights_computed_from_parameters_are_refused(
    change: Callable[[nn.Module], nn.Module], function: str
) -> None:
    model = nn.Sequential(change(nn.Linear(5, 4)), nn.Linear(4, 3))
    with pytest.raises(BoundNotAvailableError) as caught:
        rank_bound(model, torch.zeros(1, 5))
    assert str(caught.value) == (
        "layer '0.parametrizations.weight': its weight is computed from parameters "
        f"({function}), so that random weights do not stand for all that it can have"
    )


def test_products_of_weights_are_bounded() -> None:
    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 5))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.a @ self.b)

    model, x = LowRank(), torch.randn(7, 5)
    bound, exact = rank_bound(model, x, data=x), exact_ranks(model, x)
    assert bound.is_theorem
    assert (bound.total, bound.outer) == (exact["total"], exact["outer"])


@pytest.mark.parametrize("kind", ["generic", "patch"])
def test_pruned_layers_are_bounded(kind: Any) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    prune.random_unstructured(model[0], "weight", amount=0.3)
    model(torch.zeros(1, 5))
    x = torch.randn(9, 5)
    bound, exact = rank_bound(model, x[:1], data=x, kind=kind), exact_ranks(model, x)
    assert bound.is_theorem
    assert bound.total >= exact["total"]
    y = torch.randn(9, 3)
    live = batch_bound(model, functional.mse_loss, (x, y))
    assert live.total >= exact_rank(model, functional.mse_loss, x, y)


def beside(model: nn.Module, also: Callable[[Tensor], object]) -> Network:
    """A step that does something with the output besides returning it."""
    x = torch.zeros(2, 4)
    plain = module_network(model, x)

    def forward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (o,) = plain.forward(inputs)
        also(o)
        return (o,)

    return Network(forward, plain.inputs, plain.parameters)


@pytest.mark.parametrize(
    "also",
    [
        lambda o: (o.softmax(-1).argmax(-1) == 0).double().mean(),
        lambda o: functional.nll_loss(o.log_softmax(1), torch.tensor([0, 1])),
        lambda o: functional.binary_cross_entropy(o.sigmoid(), torch.ones_like(o)),
        lambda o: functional.kl_div(o.log_softmax(1), torch.zeros_like(o).softmax(1)),
    ],
    ids=["accuracy", "nll_loss", "binary_cross_entropy", "kl_div"],
)
def test_what_happens_beside_the_way_to_the_output_does_not_count(
    also: Callable[[Tensor], object],
) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    assert linear_bound(beside(model, also), MSE).is_theorem
    # In place, it is on the way.
    assert not linear_bound(beside(model, lambda o: o[:, :1].relu_()), MSE).is_theorem


def test_a_log_softmax_inside_the_network_is_not_that_of_the_loss() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.LogSoftmax(1), nn.Linear(5, 3), nn.LogSoftmax(1))
    bound = rank_bound(model, torch.zeros(1, 4), loss=loss_kind("nll_loss"))
    assert (bound.outputs, bound.is_theorem) == (2, False)


def test_accuracy_in_the_loss_leaves_the_batch_bound_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])

    def with_accuracy(o: Tensor, y: Tensor) -> Tensor:
        assert float((o.softmax(-1).argmax(-1) == y).double().mean()) <= 1
        return functional.cross_entropy(o, y)

    expected = batch_bound(model, functional.cross_entropy, (x, y)).total
    assert batch_bound(model, with_accuracy, (x, y)).total == expected
    assert batch_bound(model, functional.mse_loss, (x, torch.zeros(4, 3))).total > expected


@pytest.mark.parametrize("zeroed", [False, True])
def test_a_penalty_on_logits_sees_their_shifts(zeroed: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 3, bias=False))
    if zeroed:  # where the penalty has no gradient, but a curvature
        nn.init.zeros_(model[0].weight)
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])

    def penalised(o: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(o, y) + o.square().mean()

    exact = exact_rank(model, penalised, x, y)
    assert exact == 12
    assert batch_bound(model, penalised, (x, y)).total >= exact


def test_arguments_that_make_no_sense() -> None:
    model = nn.Linear(2, 1)
    for wrong in (True, 1.5):
        with pytest.raises(TypeError) as caught:
            rank_bound(model, torch.zeros(1, 2), input_rank=wrong)
        assert str(caught.value) == f"input_rank must be a whole number, got {wrong}"
    with pytest.raises(ValueError, match=r"^the reference batch is empty; pass data=... with at"):
        batch_bound(model, functional.mse_loss, (torch.zeros(0, 2), torch.zeros(0, 1)))


def test_warnings_of_the_user_stay_inside() -> None:
    def warn(o: Tensor) -> None:
        warnings.warn("the loss looks odd", stacklevel=1)

    assert linear_bound(beside(nn.Linear(4, 3), warn), MSE).is_theorem


class Gated(nn.Module):
    """Multiplies with a comparison, which no activation of torch takes part in."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.gate = nn.Linear(6, 5), nn.Linear(5, 3), gate

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.gate(self.first(x)))


@pytest.mark.parametrize(
    "gate",
    [lambda z: z * (z > 0), lambda z: torch.where(z > 0, z, 0.1 * z), lambda z: z],
    ids=["product", "where", "none"],
)
def test_a_gate_written_by_hand_is_a_nonlinearity(gate: Callable[[Tensor], Tensor]) -> None:
    bound = rank_bound(Gated(gate), torch.zeros(1, 6))
    linear = gate(torch.tensor([-1.0])) == -1.0
    assert bound.is_theorem == bool(linear)
    if not linear:
        assert "gates or other nonlinearities" in bound.reason
