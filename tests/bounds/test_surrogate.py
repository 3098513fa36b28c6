"""For which network a bound is a theorem, a reference line, or cannot be given."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_hessrank.api import rank_bound
from lightning_hessrank.network.losses import loss_kind
from lightning_hessrank.results import BoundNotAvailableError
from tests.oracles import exact_ranks


def small(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Linear(5, 3))


class Forward(nn.Module):
    """Two layers, and whatever a test does with them."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 3)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


LINEAR = "The network is linear in its input and in every layer, so the bound holds for it."


@pytest.mark.parametrize(
    "model",
    [
        small(),
        small(nn.Dropout(0.5).eval()),
        small(nn.BatchNorm1d(5).eval()),
        Forward(lambda m, x: m.two(functional.linear(x, m.one.weight, m.one.bias))),
        Forward(lambda m, x: (x @ m.one.weight.T) @ m.two.weight.t() + m.two.bias),
        Forward(lambda m, x: m.two(torch.cat([m.one(x)[:, :2], 2 * m.one(x)[:, 2:]], dim=1))),
        Forward(lambda m, x: m.two(m.one(x) - m.one(torch.zeros_like(x)))),
    ],
)
def test_linear_networks_have_a_theorem(model: nn.Module) -> None:
    bound = rank_bound(model, torch.zeros(1, 4))
    assert (bound.is_theorem, bound.reason) == (True, LINEAR)


@pytest.mark.parametrize(
    ("model", "replaced"),
    [
        (small(nn.ReLU()), "relu"),
        (small(nn.GELU(), nn.Dropout()), "dropout in training mode, gelu"),
        (small(nn.LayerNorm(5)), "layer_norm"),
        (small(nn.BatchNorm1d(5)), "batch_norm in training mode"),
        (small(nn.Unflatten(1, (1, 5)), nn.MaxPool1d(3, 1, 1), nn.Flatten()), "max_pool1d"),
        (Forward(lambda m, x: m.two((z := m.one(x)) * z.sigmoid())), "sigmoid"),
        (Forward(lambda m, x: m.two(m.one(x)).log_softmax(1)), "log_softmax"),
    ],
)
def test_other_networks_have_a_reference_line(model: nn.Module, replaced: str) -> None:
    bound = rank_bound(model, torch.zeros(2, 4))
    assert not bound.is_theorem
    assert bound.reason == (
        f"Reference line: the bound of the linear surrogate, which has no {replaced}; the rank of "
        "the network itself can exceed it."
    )
    linear = rank_bound(small(), torch.zeros(2, 4))
    if "norm" not in replaced and "pool" not in replaced:
        assert bound.total == linear.total


def test_a_log_softmax_before_nll_is_cross_entropy() -> None:
    split = rank_bound(
        small(nn.Identity()).append(nn.LogSoftmax(1)), torch.zeros(1, 4), loss="nll_loss"
    )
    whole = rank_bound(small(), torch.zeros(1, 4), loss="cross_entropy")
    assert split.is_theorem
    assert (split.total, split.outputs) == (whole.total, 2)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda m, x: m.two(m.one(x) * m.one(x.flip(1))),
            "after layer 'one': it is not linear in its inputs (mul), so the network has no linear "
            "surrogate",
        ),
        (
            lambda m, x: m.two(functional.scaled_dot_product_attention(*(m.one(x)[None],) * 3)[0]),
            "after layer 'one': attention multiplies activations with each other "
            "(scaled_dot_product_attention), so the network has no linear surrogate",
        ),
        (
            lambda m, x: m.two(m.one(x - x.mean(0))),
            "the network's output for one sample depends on other samples of the batch, so that "
            "there is no bound from its architecture alone",
        ),
        (
            lambda m, x: m.two(m.one(x.detach())),
            "the network's output does not depend on its floating-point inputs through operations "
            "of PyTorch, so that there is nothing to bound",
        ),
    ],
)
def test_networks_without_a_bound_say_why(forward: Any, message: str) -> None:
    with pytest.raises(BoundNotAvailableError) as caught:
        rank_bound(Forward(forward), torch.zeros(1, 4))
    assert str(caught.value) == message


@pytest.mark.parametrize("rnn", [nn.LSTM, nn.GRU])
def test_recurrent_layers_have_no_linear_bound(rnn: type[nn.Module]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = rnn(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    with pytest.raises(BoundNotAvailableError, match="multiplies gates with states"):
        rank_bound(Recurrent(), torch.zeros(1, 5, 4))


def test_ways_to_write_the_same_network_have_the_same_bound() -> None:
    modules = small()
    functions = Forward(
        lambda m, x: functional.linear(x, m.one.weight, m.one.bias) @ m.two.weight.mT + m.two.bias
    )
    example = torch.zeros(1, 4)
    expected = rank_bound(modules, example, kind="generic")
    bound = rank_bound(functions, example, kind="generic")
    assert (bound.total, bound.functional) == (expected.total, expected.functional)


def test_frozen_layers_are_traversed_but_have_no_parameters() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    model[1].requires_grad_(False)
    x = torch.randn(8, 4)
    bound = rank_bound(model, x[:1], data=x, kind="generic")
    exact = exact_ranks(model, x)
    assert [layer.name for layer in bound.layers] == ["0", "2"]
    assert bound.total == exact["total"]
    assert bound.functional == exact["functional"]


def test_unused_parameters_count_as_parameters_only() -> None:
    model = Forward(lambda m, x: m.one(x))
    bound = rank_bound(model, torch.zeros(1, 4), kind="patch")
    assert bound.num_parameters == 25 + 18
    assert {layer.name: layer.functional for layer in bound.layers} == {"one": 0, "two": 0}
    assert bound.total == 25


@pytest.mark.parametrize("kind", ["patch", "generic"])
def test_tied_weights(kind: str) -> None:
    tied = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(tied, nn.Linear(4, 4, bias=False), tied)
    x = torch.randn(9, 4)
    bound, exact = rank_bound(model, x[:1], data=x, kind=kind), exact_ranks(model, x)
    assert bound.num_parameters == 32
    assert bound.total >= exact["total"]
    assert bound.functional >= exact["functional"]


def test_softmax_of_a_single_output_has_rank_zero() -> None:
    bound = rank_bound(nn.Linear(4, 1), torch.zeros(1, 4), loss="cross_entropy")
    assert (bound.total, bound.outer, bound.functional) == (0, 0, 0)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_dense_prediction_counts_positions(loss: str) -> None:
    model = nn.Sequential(nn.Conv1d(1, 3, 3, bias=False), nn.Conv1d(3, 2, 2, bias=False))
    x = torch.randn(6, 1, 6)
    bound, exact = rank_bound(model, x[:1], loss=loss, data=x), exact_ranks(model, x, loss)
    assert bound.outputs == (2 * 3 if loss == "mse" else 3)
    assert {"total": bound.total, "outer": bound.outer, "functional": bound.functional} == exact


def test_inputs_that_the_output_ignores_do_not_count() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2, bias=False)

        def forward(self, x: Tensor, unused: Tensor) -> Tensor:
            return self.head(x)

    bound = rank_bound(Two(), (torch.zeros(1, 3), torch.zeros(1, 7)))
    assert (bound.input_rank, bound.outer) == (3, 6)


def test_data_limit_the_bound() -> None:
    model = nn.Linear(6, 4, bias=False)
    x = torch.randn(3, 6)
    pairs = [(x[:2], torch.zeros(2, 4)), (x[2:], torch.zeros(1, 4))]
    for data in (x, pairs, [x[:1], x[1:]]):
        assert rank_bound(model, x[:1], data=data).total == 12
    assert rank_bound(model, x[:1], input_rank=2).total == 8
    assert rank_bound(model, x[:1]).total == 24


def test_the_model_and_all_generators_are_left_as_they_are() -> None:
    model = small(nn.BatchNorm1d(5), nn.Dropout(), nn.ReLU(inplace=True)).float().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    example = torch.randn(2, 4).float()
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    rank_bound(model, example, kind="patch")
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_same_call_gives_the_same_bound() -> None:
    model = nn.Sequential(nn.Conv1d(1, 3, 3), nn.Flatten(), nn.Linear(18, 2))
    first, second = (rank_bound(model, torch.zeros(1, 1, 8), kind="patch") for _ in range(2))
    assert first == second


def test_errors_in_arguments() -> None:
    model, x = nn.Linear(2, 1), torch.zeros(1, 2)
    with pytest.raises(TypeError, match=r"^model must be a torch.nn.Module, got function$"):
        rank_bound(loss_kind, x)
    with pytest.raises(TypeError, match=r"^loss 'hinge' is not recognised; pass one of "):
        rank_bound(model, x, loss="hinge")
    with pytest.raises(
        ValueError, match=r"^kind must be one of 'auto', 'closed-form', .*, got 'x'"
    ):
        rank_bound(model, x, kind="x")
    with pytest.raises(
        ValueError, match=r"^pass data or input_rank, not both: the data have a rank"
    ):
        rank_bound(model, x, data=x, input_rank=1)
    with pytest.raises(ValueError, match=r"^input_rank must be a whole number from 0 on, got -1$"):
        rank_bound(model, x, input_rank=-1)
    with pytest.raises(ValueError, match=r"^data must have samples of shapes \[\(2,\)\]"):
        rank_bound(model, x, data=torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"^the network has no trainable parameters"):
        rank_bound(nn.Identity(), x)
    with pytest.raises(
        BoundNotAvailableError, match=r"^no closed form: layer '0' is not fully conn"
    ):
        rank_bound(nn.Sequential(nn.Conv1d(1, 1, 2)), torch.zeros(1, 1, 4), kind="closed-form")
    with pytest.raises(
        BoundNotAvailableError, match=r"no floating-point inputs with a batch dimen"
    ):
        rank_bound(nn.Embedding(4, 2), torch.zeros(1, 3, dtype=torch.int64))


def test_a_parameter_that_is_used_out_of_sight_is_noticed() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return x @ weight.T

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            x, weight = ctx.saved_tensors
            return g @ weight, g.T @ x

    model = Forward(lambda m, x: m.two(Hidden.apply(x, m.one.weight)) + x.sum(1, keepdim=True))
    with pytest.raises(BoundNotAvailableError) as caught:
        rank_bound(model, torch.zeros(1, 4))
    assert str(caught.value) == (
        "layer 'one': its parameter one.weight is used where calls of PyTorch functions cannot be "
        "seen (a scripted or compiled module, a custom autograd function), so the network has no "
        "linear surrogate"
    )
