"""Products and dense matrices of the three parts, against ``torch.func`` and each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_hessrank.estimators import dense_rank
from lightning_hessrank.hessian import (
    LossCurvature,
    NonFiniteError,
)
from tests.networks import CASES, Problem

PARTS = ("total", "outer", "functional")


def close(a: Tensor, b: Tensor, rtol: float = 1e-11) -> bool:
    return bool((a - b).abs().max() <= rtol * b.abs().max().clamp_min(1e-12))


@pytest.mark.parametrize("name", CASES)
def test_parts_equal_their_definitions(name: str) -> None:
    problem = Problem(name)
    curvature = LossCurvature(problem.function())
    oracle = problem.oracle()
    assert close(oracle["total"], oracle["outer"] + oracle["functional"], 1e-10)
    for part in PARTS:
        operator = curvature.operator(part)
        unit = torch.eye(operator.dim, dtype=torch.float64)
        assert close(operator.matmat(unit), oracle[part]), part
        assert close(operator.to_dense(), oracle[part]), part


@pytest.mark.parametrize("name", ["mlp", "cnn", "tied"])
@pytest.mark.parametrize("part", PARTS)
def test_block_of_some_parameters_is_a_submatrix(name: str, part: str) -> None:
    problem = Problem(name)
    curvature = LossCurvature(problem.function())
    names = list(problem.parameters)[:-1]
    size = sum(problem.parameters[n].numel() for n in names)
    block = curvature.operator(part, parameters=names)
    expected = problem.oracle()[part][:size, :size]
    assert close(block.to_dense(), expected)
    v = torch.randn(size, 3, dtype=torch.float64)
    assert close(block.matmat(v), expected @ v)


def test_block_of_unknown_parameters_is_refused() -> None:
    curvature = LossCurvature(Problem("mlp").function())
    with pytest.raises(ValueError, match=r"^parameters must name some of .*; got head$"):
        curvature.operator("total", parameters=["0.weight", "head"])
    with pytest.raises(ValueError, match=r"got no name$"):
        curvature.operator("total", parameters=[])


@pytest.mark.parametrize("part", PARTS)
def test_graphs_that_do_not_fit_are_built_again(part: str) -> None:
    kept, rebuilt = Problem("cnn"), Problem("cnn")
    a = LossCurvature(kept.function())
    b = LossCurvature(rebuilt.function(), max_bytes=1)
    assert (a.retains_graphs, b.retains_graphs) == (True, False)
    assert b.block_size == 1
    assert b.batching.reason == "the intermediate results of a single vector fill a block"
    first = rebuilt.evaluations
    v = torch.randn(a.num_parameters, 3, dtype=torch.float64)
    assert close(b.operator(part).matmat(v), a.operator(part).matmat(v), 1e-13)
    assert kept.evaluations == 3
    assert rebuilt.evaluations == first + 3
    assert close(b.gradient(), a.gradient(), 1e-13)


@pytest.mark.parametrize("part", PARTS)
def test_looping_over_vectors_changes_nothing(part: str) -> None:
    problem = Problem("cnn")
    curvature = LossCurvature(problem.function())
    v = torch.randn(curvature.num_parameters, 5, dtype=torch.float64)
    batched = curvature.operator(part).matmat(v)
    curvature.batching.disable("asked to")
    assert close(curvature.operator(part).matmat(v), batched, 1e-13)


class NoBatchingRule(torch.autograd.Function):
    """Twice differentiable, but not under ``vmap``: its backward looks at a value."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        if bool((grad == 7.25).all()):
            return grad
        return grad * 3 * x**2


def test_operation_that_cannot_be_batched_is_looped_over_and_recorded() -> None:
    problem = Problem("mlp")
    plain = problem.net.forward
    problem.net.forward = lambda x: NoBatchingRule.apply(plain(x))
    curvature = LossCurvature(problem.function())
    operator = curvature.operator("outer")
    v = torch.randn(operator.dim, 4, dtype=torch.float64)
    together = operator.matmat(v)
    assert not curvature.batching.enabled
    assert "is_nonzero" in str(curvature.batching.reason)
    single = torch.cat([operator.matmat(x[:, None]) for x in v.T], dim=1)
    assert close(together, single, 1e-14)


def test_gradient_is_that_of_the_mean_over_samples() -> None:
    problem = Problem("mlp", sizes=(1, 6))
    x = torch.cat([x for x, _ in problem.data])
    y = torch.cat([y for _, y in problem.data])
    loss = problem.loss(problem.net(x), y)
    expected = torch.autograd.grad(loss, list(problem.parameters.values()))
    curvature = LossCurvature(problem.function())
    assert close(curvature.gradient(), torch.cat([g.flatten() for g in expected]))
    assert curvature.loss == pytest.approx(float(loss.detach()), rel=1e-14)


def test_no_parameters_no_hessian() -> None:
    function = type(Problem("mlp").function())({}, [])
    with pytest.raises(ValueError, match=r"^a loss function without parameters has no Hessian$"):
        LossCurvature(function)


def test_loss_that_is_finite_with_a_hessian_that_is_not() -> None:
    problem = Problem("mse")
    problem.loss = lambda f, y: (f - f.detach()).abs().pow(1.5).sum()
    curvature = LossCurvature(problem.function())
    with pytest.raises(NonFiniteError, match=r"^the total Hessian is not finite at a finite loss"):
        dense_rank(curvature.operator("total"))
