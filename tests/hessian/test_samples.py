"""The dense Hessian from derivatives of every sample is the true one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_hessrank.estimators.dense import dense_rank
from lightning_hessrank.hessian import LossCurvature, NonFiniteError
from lightning_hessrank.hessian.dense import add_sampled
from lightning_hessrank.hessian.samples import Block, SampleHessian
from tests.hessian.architectures import KINDS, PARTS, Given, RandomProblem
from tests.hessian.conftest import Seen, assert_same
from tests.slow import first


def by_products(curvature: LossCurvature, part: str) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_hessrank.hessian.dense.add_sampled", lambda *_: frozenset())
        return curvature.operator(part).to_dense()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("seed", first(2, range(12)))
@pytest.mark.parametrize("kind", KINDS)
def test_random_networks(kind: str, seed: int, sampling: Seen) -> None:
    problem = RandomProblem(kind, seed)
    oracle = problem.oracle()
    scale = max(float(x.abs().max()) for x in oracle.values())
    curvature = LossCurvature(problem.function())
    for part in PARTS:
        matrix = curvature.operator(part).to_dense()
        assert sampling.names == problem.layered() != set()
        assert sampling.agreed, part
        assert_same(matrix, oracle[part], scale, f"{part}, oracle")
        assert_same(matrix, by_products(curvature, part), scale, f"{part}, products")
        assert matrix.equal(matrix.T)


@pytest.mark.parametrize("seed", first(1, range(3)))
@pytest.mark.parametrize("kind", KINDS)
def test_repeated_in_small_steps_and_without_random_numbers(
    kind: str, seed: int, sampling: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = RandomProblem(kind, seed)
    curvature = LossCurvature(problem.function())
    blocks, make = [], Block.add_to
    monkeypatch.setattr(Block, "add_to", lambda b, *args: (blocks.append(b), make(b, *args)))
    state = torch.get_rng_state()
    for part in PARTS:
        first = curvature.operator(part).to_dense()
        few = len(blocks)
        assert curvature.operator(part).to_dense().equal(first)
        with monkeypatch.context() as patch:
            patch.setattr("lightning_hessrank.hessian.samples.CHUNK_BYTES", 1)
            blocks.clear()
            small = curvature.operator(part).to_dense()
        assert len(blocks) > few or not few
        assert sampling.agreed
        assert_same(small, first, float(first.abs().max()), part)
        blocks.clear()
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("part", PARTS)
def test_progress_goes_up_and_can_stop(part: str, sampling: Seen) -> None:
    problem = RandomProblem("transformer", 0)
    operator = LossCurvature(problem.function()).operator(part)
    calls: list[tuple[int, int]] = []
    operator.to_dense(lambda *done: calls.append(done))
    assert calls == sorted(calls)
    assert (calls[0], calls[-1]) == ((0, operator.dim), (operator.dim, operator.dim))
    assert len(calls) > 4
    for number in range(len(calls)):
        left = list(range(number))
        with pytest.raises(IndexError, match="pop from empty list"):
            operator.to_dense(lambda *_, left=left: left.pop())


COSTS = {
    "total": (nn.ReLU, 3 + 8),  # the outputs, and eight inputs of the head
    "outer": (nn.Tanh, 3),
    "functional": (nn.Tanh, 3 * 8 + 8),  # unit vectors in the first layer's output
}


@pytest.mark.parametrize("part", PARTS)
def test_cost_decides(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    activation, cost = COSTS[part]
    layers = nn.Linear(5, 8), activation(), nn.Linear(8, 3)  # 75 parameters
    net = nn.Sequential(nn.LayerNorm(5), *layers)
    curvature = LossCurvature(Given(net, torch.randn(6, 5)).function())
    costs, true = [], SampleHessian.cost.fget
    monkeypatch.setattr(
        SampleHessian, "cost", property(lambda self: costs.append(true(self)) or costs[-1])
    )
    start = dict(enumerate((0, 40, 48, 72), start=2))

    def sampled() -> set[int]:
        return set(add_sampled(curvature, part, start, torch.zeros(75, 75).double(), int))

    assert sampled() == set(start)
    assert costs == [cost]
    monkeypatch.setattr(SampleHessian, "cost", 37)
    assert sampled() == set(start)
    monkeypatch.setattr(SampleHessian, "cost", 38)
    assert sampled() == set()


class Power(nn.Module):
    """Its second derivative is infinite at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs() ** 1.5


def test_infinite_curvature_is_reported(sampling: Seen) -> None:
    x = torch.randn(5, 4)
    x[0] = 0
    net = nn.Sequential(nn.Linear(4, 4, bias=False), Power(), nn.Linear(4, 3))
    operator = LossCurvature(Given(net, x).function()).operator("total")
    with pytest.raises(
        NonFiniteError,
        match=r"^the total Hessian is not finite at a finite loss, in the rows of 0\.weight",
    ):
        dense_rank(operator)
    assert sampling.agreed is False
