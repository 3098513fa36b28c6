"""The methods agree on real networks, before and after training."""

from __future__ import annotations

import statistics
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_hessrank.estimators import (
    dense_parts,
    dense_rank,
    estimate_rank,
    lanczos_rank,
    sketch_rank,
)
from lightning_hessrank.hessian import (
    DenseOperator,
    Evaluation,
    LossCurvature,
    LossFunction,
    LossTerm,
)
from tests.networks import CASES, Problem


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.data) / 16, torch.tensor(data.target)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


def linear() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16, bias=False),
        nn.Linear(16, 12, bias=False),
        nn.Linear(12, 10, bias=False),
    )


@cache
def curvature(build, steps: int) -> LossCurvature:
    """Of a network on 128 digits, after some steps of training on 600."""
    x, y = digits()
    torch.manual_seed(1)
    net = build().double()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for i in range(steps):
        batch = slice(100 * (i % 6), 100 * (i % 6) + 100)
        optimiser.zero_grad()
        F.cross_entropy(net(x[batch].view(-1, 1, 8, 8)), y[batch]).backward()
        optimiser.step()

    def evaluate() -> Evaluation:
        output = net(x[:128].view(-1, 1, 8, 8))
        return Evaluation(F.cross_entropy(output, y[:128]), (output,))

    return LossCurvature(LossFunction(dict(net.named_parameters()), [LossTerm(1.0, evaluate)]))


@cache
def matrix(build, steps: int, part: str = "total") -> Tensor:
    return curvature(build, steps).operator(part).to_dense()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 60])
@pytest.mark.parametrize("build", [cnn, linear])
@pytest.mark.parametrize("part", ["total", "outer", "functional"])
def test_lanczos_agrees_with_dense(build, steps: int, part: str) -> None:
    operator = curvature(build, steps).operator(part)
    dense = dense_rank(DenseOperator(matrix(build, steps, part)))
    for rtol in (1e-1, 1e-2):
        estimate = lanczos_rank(operator, rtol=rtol, part=part)
        assert estimate.rank == dense.rank_at(rtol)
        assert estimate.std_error == 0
        assert estimate.num_products < operator.dim


@pytest.mark.slow
@pytest.mark.parametrize("part", ["total", "outer", "functional"])
def test_sketch_agrees_with_dense_where_the_network_is_linear(part: str) -> None:
    operator = curvature(linear, 0).operator(part)
    dense = dense_rank(operator)
    sketch = sketch_rank(operator, max_rank=dense.rank)
    assert (sketch.rank, sketch.method) == (dense.rank, "sketch")
    assert sketch.gap > 1e3
    assert sketch.num_products < operator.dim


@pytest.mark.slow
@pytest.mark.parametrize("part", ["total", "outer", "functional"])
@pytest.mark.filterwarnings("ignore:the rank is too close to the dimension")
def test_sketch_agrees_with_dense_after_training(part: str) -> None:
    """Decaying residuals: no gap at machine precision."""
    operator = curvature(linear, 60).operator(part)
    dense = dense_rank(operator)
    assert sketch_rank(operator, max_rank=dense.rank).rank == dense.rank
    assert sketch_rank(operator, rtol=1e-2).rank == dense.rank_at(1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-3])
def test_lanczos_interval_covers_the_dense_count(rtol: float) -> None:
    """A reduced form of the benchmark's 100 estimates: 10 of them."""
    operator = DenseOperator(matrix(cnn, 60))
    exact = dense_rank(operator).rank_at(rtol)
    estimates = [lanczos_rank(operator, rtol=rtol, seed=seed) for seed in range(10)]
    intervals = [e.interval for e in estimates]
    assert sum(low <= exact <= high for low, high in intervals) >= 9
    widths = [(high - low) / 2 for low, high in intervals]
    assert statistics.median(widths) <= max(1, 0.1 * exact)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sizes", [(2, 3), (30, 20)])
def test_dense_parts_are_the_three_ranks(name: str, sizes: tuple[int, ...]) -> None:
    """Few samples: the outer part from its Gram matrix; many: as the difference."""
    problem = Problem(name, sizes=sizes)
    calls: list[tuple[int, int]] = []
    estimates = dense_parts(
        LossCurvature(problem.function()).operators(), progress=lambda *x: calls.append(x)
    )
    assert list(estimates) == ["total", "outer", "functional"]
    for part, expected in problem.oracle().items():
        spectrum = torch.linalg.eigvalsh(expected)
        found = estimates[part]
        scale = float(spectrum.abs().max())
        assert found.part == part
        assert float((found.eigenvalues - spectrum).abs().max()) < 1e-13 * max(scale, 1)
        assert found.rank == dense_rank(DenseOperator(expected)).rank
        assert found.num_parameters == len(spectrum)
    assert calls == sorted(calls)
    assert calls[-1] == (2 * len(spectrum), 2 * len(spectrum))


def test_penalty_on_the_weights_is_in_the_total_only() -> None:
    problem = Problem("mlp", sizes=(30, 20))
    plain = problem.loss
    problem.loss = lambda f, y: plain(f, y) + sum((p**2).sum() for p in problem.parameters.values())
    estimates = dense_parts(LossCurvature(problem.function()).operators())
    size = estimates["total"].num_parameters
    assert estimates["total"].rank == size
    assert estimates["outer"].rank < size - 5
    assert estimates["outer"].rank == dense_parts_of_plain(plain)["outer"].rank


def dense_parts_of_plain(loss):
    problem = Problem("mlp", sizes=(30, 20))
    problem.loss = loss
    return dense_parts(LossCurvature(problem.function()).operators())


def test_outer_part_is_not_lost_beside_a_large_functional_part() -> None:
    """Large residuals: the difference of the other two would have no digit of the outer part."""
    problem = Problem("mse", sizes=(40, 20))
    problem.loss = lambda f, y: 1e9 * f.mean() + (f**2).mean()
    estimates = dense_parts(LossCurvature(problem.function()).operators())
    expected = dense_rank(LossCurvature(problem.function()).operator("outer"))
    assert estimates["outer"].rank == expected.rank
    assert estimates["outer"].tolerance == pytest.approx(expected.tolerance, rel=1e-6)


def test_total_alone_where_the_output_is_unknown() -> None:
    problem = Problem("mlp")
    function = problem.function()
    terms = [
        LossTerm(t.weight, lambda t=t: Evaluation(t.evaluate().loss, ())) for t in function.terms
    ]
    hidden = LossCurvature(LossFunction(function.parameters, terms))
    estimates = dense_parts(hidden.operators())
    assert list(estimates) == ["total"]
    assert estimates["total"].rank == dense_parts(LossCurvature(function).operators())["total"].rank


def test_dead_pixels_cost_nothing_and_change_nothing() -> None:
    problem = Problem("mlp", sizes=(30,))
    problem.data[0][0][:, 1:4] = 0
    total = problem.oracle()["total"]
    estimate = dense_rank(LossCurvature(problem.function()).operator())
    spectrum = torch.linalg.eigvalsh(total)
    assert float((estimate.eigenvalues - spectrum).abs().max()) < 1e-14
    assert int((estimate.eigenvalues == 0).sum()) == 5 * 3


def test_estimates_of_a_real_network_repeat_bitwise() -> None:
    results = [
        estimate_rank(curvature(cnn, 60).operator(), method=m, rtol=1e-2, seed=1)
        for m in ("dense", "dense", "lanczos", "lanczos")
    ]
    assert torch.equal(results[0].eigenvalues, results[1].eigenvalues)
    assert results[2].tolerance == results[3].tolerance
    assert results[2].num_products == results[3].num_products
