"""The closed form of fully connected chains against dense Hessians and published values."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_hessrank.api import rank_bound
from lightning_hessrank.results import BoundNotAvailableError, RankBound
from tests.oracles import exact_ranks, inputs_of_rank
from tests.slow import first


def chain(*widths: int, bias: bool = False) -> nn.Sequential:
    """A linear fully connected network."""
    return nn.Sequential(*(nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)))


def ranks(bound: RankBound) -> dict[str, int | None]:
    """The three numbers of a bound, to compare with exact ranks."""
    return {"total": bound.total, "outer": bound.outer, "functional": bound.functional}


@pytest.mark.parametrize("seed", first(15, range(60)))
def test_chains_without_biases_have_exactly_the_rank_of_the_closed_form(seed: int) -> None:
    draw = random.Random(seed)
    widths = [draw.randint(1, 7) for _ in range(draw.randint(2, 6))]
    rank, count = draw.randint(1, widths[0]), draw.randint(1, 12)
    loss = draw.choice(["mse", "cross_entropy"])
    model, x = chain(*widths), inputs_of_rank(count, widths[0], rank)
    bound = rank_bound(model, x[:1], loss=loss, data=x, kind="closed-form")
    assert bound.is_theorem
    assert ranks(bound) == exact_ranks(model, x, loss)
    assert sum(layer.functional for layer in bound.layers) >= bound.functional


@pytest.mark.parametrize("seed", first(15, range(60)))
def test_chains_with_biases_have_exactly_the_rank_of_the_closed_form(seed: int) -> None:
    draw = random.Random(seed)
    outputs = draw.randint(1, 5)
    hidden = [draw.randint(outputs, 8) for _ in range(draw.randint(0, 3))]
    widths = [draw.randint(1, 7), *hidden, outputs]
    x = inputs_of_rank(draw.randint(1, 12), widths[0], draw.randint(1, widths[0]))
    loss = draw.choice(["mse", "cross_entropy"])
    model = chain(*widths, bias=True)
    bound = rank_bound(model, x[:1], loss=loss, data=x, kind="closed-form")
    # Equal also where the constant lies in the span of the data (few samples).
    assert ranks(bound) == exact_ranks(model, x, loss)


def digits(count: int) -> Tensor:
    return torch.as_tensor(load_digits().data[:count], dtype=torch.float64)


@pytest.mark.parametrize(
    ("count", "widths", "mse", "cross_entropy"),
    [
        (600, (64, 20, 10), 880, 801),
        (600, (64, 16, 12, 10), 940, 864),
        (1797, (64, 20, 10), 910, 828),
    ],
)
def test_ranks_on_handwritten_digits(
    count: int, widths: tuple[int, ...], mse: int, cross_entropy: int
) -> None:
    x, model = digits(count), chain(*widths)
    assert rank_bound(model, x[:1], loss="mse", data=x).total == mse
    assert rank_bound(model, x[:1], loss="cross_entropy", data=x).total == cross_entropy


@pytest.mark.parametrize(
    ("widths", "total"),
    [((64, 64, 64, 10), 3000), ((64, 256, 10), 5660), ((128, 96, 96, 4), 2016)],
)
def test_ranks_of_larger_chains_on_any_data(widths: tuple[int, ...], total: int) -> None:
    assert rank_bound(chain(*widths), torch.zeros(1, widths[0])).total == total


def test_a_bottleneck_before_biases_has_no_closed_form() -> None:
    with pytest.raises(
        BoundNotAvailableError,
        match=r"with biases, the closed form needs every hidden width to be at least "
        r"min\(r \+ 1, K'\) = 3, got 2",
    ):
        rank_bound(chain(6, 10, 2, 9, 3, bias=True), torch.zeros(1, 6), kind="closed-form")
