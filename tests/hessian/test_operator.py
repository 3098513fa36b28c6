"""What every estimator sees: blocks that fit, products that are finite, sums over processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_hessrank.hessian import (
    DenseOperator,
    LossCurvature,
    NonFiniteError,
    ReducedOperator,
)
from lightning_hessrank.hessian.operator import product_blocks, unit_columns
from tests.networks import Problem


class Small(DenseOperator):
    """Multiplies with up to ``room`` vectors at once, and has no memory for more."""

    def __init__(self, matrix: Tensor, room: int) -> None:
        super().__init__(matrix)
        self.room = room
        self.asked: list[int] = []

    def matmat(self, vectors: Tensor) -> Tensor:
        self.asked.append(vectors.shape[1])
        if vectors.shape[1] > self.room:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return super().matmat(vectors)

    def to_dense(self, progress=None) -> Tensor:
        return super(DenseOperator, self).to_dense(progress)


def symmetric(n: int) -> Tensor:
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    return a + a.T


def test_block_shrinks_where_memory_runs_out() -> None:
    operator = Small(symmetric(40), room=10)
    calls: list[tuple[int, int]] = []
    dense = operator.to_dense(lambda done, total: calls.append((done, total)))
    assert torch.equal(dense, operator.matrix)
    assert operator.block_size == 10
    assert operator.asked == [40, 20, 10, 10, 10, 10]
    assert calls == [(0, 40), (10, 40), (20, 40), (30, 40), (40, 40)]


def test_message_where_not_even_one_vector_fits() -> None:
    operator = Small(symmetric(4), room=0)
    with pytest.raises(MemoryError) as caught:
        operator.to_dense()
    assert str(caught.value) == (
        "not even one Hessian-vector product of dimension 4 fits into the memory of cpu; measure "
        "on fewer samples (max_samples, or a smaller batch) or in several smaller batches"
    )


def test_other_errors_pass_through() -> None:
    class Broken(DenseOperator):
        def matmat(self, vectors: Tensor) -> Tensor:
            raise RuntimeError("something else")

    columns = lambda i, j: unit_columns(4, i, j, torch.ones(1))  # noqa: E731
    with pytest.raises(RuntimeError, match=r"^something else$"):
        list(product_blocks(Broken(symmetric(4)), 4, columns))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_products_that_are_not_finite_name_their_rows(bad: float) -> None:
    curvature = LossCurvature(Problem("mlp").function())
    operator = curvature.operator("total")
    products = torch.zeros(operator.dim, 2, dtype=torch.float64)
    operator.check_finite(products)
    products[31, 1] = bad  # 30 weights of the first layer come before its biases
    with pytest.raises(NonFiniteError) as caught:
        operator.check_finite(products)
    assert str(caught.value) == (
        "the total Hessian is not finite at a finite loss, in the rows of 0.bias"
    )


def test_reduced_operator_is_the_mean_over_processes() -> None:
    problem = Problem("mlp", sizes=(6, 6))
    whole = LossCurvature(problem.function()).operator("total")
    shares = []
    for batch in problem.data:
        share = Problem("mlp", sizes=(6, 6))
        share.data = [batch]
        shares.append(LossCurvature(share.function()).operator("total"))
    v = torch.randn(whole.dim, 70, dtype=torch.float64)
    other: list[Tensor] = []
    reduced = ReducedOperator(shares[0], lambda x: (x + other[0]) / 2)
    other[:] = [shares[1].matmat(v)]
    torch.testing.assert_close(reduced.matmat(v), whole.matmat(v), rtol=0, atol=1e-15)
    other[:] = [shares[1].to_dense()]
    torch.testing.assert_close(reduced.to_dense(), whole.to_dense(), rtol=0, atol=1e-15)


def test_processes_reduce_the_same_shape_whatever_their_memory() -> None:
    shapes: list[torch.Size] = []

    def reduce(x: Tensor) -> Tensor:
        shapes.append(x.shape)
        return x

    for room in (3, 64):
        operator = ReducedOperator(Small(symmetric(20), room), reduce)
        operator.matmat(symmetric(20)[:, :17])
    assert shapes == [(20, 17), (20, 17)]


def test_nan_of_one_process_is_found_by_all_after_reducing() -> None:
    curvature = LossCurvature(Problem("mlp").function())
    reduced = ReducedOperator(curvature.operator("total"), lambda x: x * float("nan"))
    columns = lambda i, j: unit_columns(reduced.dim, i, j, torch.ones(1).double())  # noqa: E731
    with pytest.raises(
        NonFiniteError, match=r"in the rows of 0\.weight, 0\.bias, 2\.weight, 2\.bias$"
    ):
        list(product_blocks(reduced, reduced.dim, columns))
