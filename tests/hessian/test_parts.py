"""A part of the Hessian as an operator, and the three parts from one pass."""

from __future__ import annotations

from torch import Tensor

from lightning_hessrank.estimators import dense_parts
from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.hessian.parts import PartOperator
from tests.networks import Problem


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


def test_progress_of_a_rebuilt_total_does_not_go_back() -> None:
    problem = Problem("mlp", sizes=(30,))
    plain = problem.loss
    problem.loss = lambda f, y: plain(f, y) + sum((p**2).sum() for p in problem.parameters.values())
    calls: list[tuple[int, int]] = []
    estimates = dense_parts(
        LossCurvature(problem.function()).operators(), progress=lambda *x: calls.append(x)
    )
    assert estimates["total"].rank == 53
    assert calls == sorted(calls)
    assert calls[-1] == (106, 106)
