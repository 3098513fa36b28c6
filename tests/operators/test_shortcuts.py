"""What keeps shortcuts honest: the check against true products, memory, odd inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.estimators import choose_method, dense_parts, dense_rank, sketch_rank
from lightning_hessrank.hessian import DenseOperator, LossCurvature
from lightning_hessrank.hessian.operator import agrees, random_vectors
from lightning_hessrank.hessian.parts import PartOperator
from lightning_hessrank.tolerance import machine_rtol
from tests.operators.networks import Problem

DENSE = "lightning_hessrank.hessian.dense"


@pytest.mark.parametrize("size", [300, 2000])
def test_an_error_that_a_rank_can_see_is_not_let_pass(size: int) -> None:
    """On a flat spectrum the cut is far below the same share of the Frobenius norm."""
    matrix = torch.ones(size, dtype=torch.float64)
    matrix[-1] = 0
    vectors = random_vectors(size, matrix)
    for times, passes in ((0.01, True), (4.0, False)):
        wrong = matrix.clone()
        wrong[-1] = times * machine_rtol(size)
        assert agrees(wrong[:, None] * vectors, matrix[:, None] * vectors) is passes


def test_a_shortcut_that_loses_an_eigenvalue_just_beyond_the_cut_is_dropped() -> None:
    """A tiny penalty on a weight of a dead input: its row is all that the layers do not explain."""
    torch.manual_seed(0)
    net = nn.Linear(50, 12, bias=False).double()
    x = torch.linalg.qr(torch.randn(80, 50, dtype=torch.float64)).Q
    x[:, -1] = 0
    problem = Problem("mse")
    problem.net, problem.parameters, problem.data = net, {"weight": net.weight}, [(x, x[:, :12])]
    scale = 2 / (80 * 12)  # what the other eigenvalues are
    for times in (0.5, 2.0):
        c = times * machine_rtol(600) * scale / 2
        problem.loss = lambda f, y, c=c: F.mse_loss(f, y) + c * net.weight[0, 49] ** 2
        found = dense_rank(LossCurvature(problem.function()).operator())
        assert found.rank == 12 * 49 + (times > 1)


class OneAtATime(PartOperator):
    """Has memory for a single vector."""

    def matmat(self, vectors: Tensor) -> Tensor:
        if vectors.shape[1] > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return super().matmat(vectors)


def test_pairs_of_products_shrink_where_memory_runs_out(monkeypatch) -> None:
    problem = Problem("linear", sizes=(30,))
    expected = dense_parts(LossCurvature(problem.function()).operators())
    monkeypatch.setattr("lightning_hessrank.hessian.parts.PartOperator", OneAtATime)
    curvature = LossCurvature(problem.function())
    assert isinstance(curvature.operator(), OneAtATime)
    found = dense_parts(curvature.operators())
    assert {p: e.rank for p, e in found.items()} == {p: e.rank for p, e in expected.items()}


class Sketched(DenseOperator):
    def matmat(self, vectors: Tensor) -> Tensor:
        if vectors.shape[1] > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return super().matmat(vectors)


def test_products_that_check_a_sketch_shrink_too() -> None:
    matrix = torch.zeros(200, 200, dtype=torch.float64)
    matrix.fill_diagonal_(1.0)[20:] = 0
    operator = Sketched(matrix)
    assert sketch_rank(operator, max_rank=20, counts=True).counts[1e-1] == 20


def test_sparse_inputs_are_no_layers_but_measured() -> None:
    problem = Problem("mlp", sizes=(12,))
    x, y = problem.data[0]
    expected = dense_rank(LossCurvature(problem.function()).operator())
    problem.data = [(x.to_sparse(), y)]
    curvature = LossCurvature(problem.function())
    seen = dense_rank(curvature.operator())
    assert seen.rank == expected.rank
    assert float((seen.eigenvalues - expected.eigenvalues).abs().max()) < 1e-14


def test_cost_of_a_dense_matrix_is_asked_only_where_it_fits(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(PartOperator, "dense_cost", lambda self: asked.append(self.dim) or 1.0)
    operator = LossCurvature(Problem("mlp").function()).operator()
    choose_method(operator, memory_limit=5 * 10**4)
    assert asked == []
    choose_method(operator)
    assert asked == [operator.dim]


def test_cost_of_a_dense_matrix_says_which_way_it_takes(monkeypatch) -> None:
    problem = Problem("mlp", sizes=(12,))  # 53 parameters: three outputs, five inputs of the head
    operator = LossCurvature(problem.function()).operator()
    assert operator.dense_cost() == (3 + 5) / 4 + 53 / 8
    monkeypatch.setattr(f"{DENSE}.sample", lambda *_: (None, frozenset()))
    assert operator.dense_cost() == 53 / 2

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(f"{DENSE}.sample", no_memory)
    assert operator.dense_cost() == 53 / 2


def test_progress_of_a_rebuilt_total_does_not_go_back() -> None:
    problem = Problem("mlp", sizes=(30,))
    plain = problem.loss
    problem.loss = lambda f, y: plain(f, y) + sum((p**2).sum() for p in problem.parameters.values())
    calls: list[tuple[int, int]] = []
    operators = LossCurvature(problem.function()).operators()
    estimates = dense_parts(operators, progress=lambda *x: calls.append(x))
    assert estimates["total"].rank == 53
    assert calls == sorted(calls)
    assert calls[-1] == (106, 106)
