"""The shortcut by derivatives of every sample, where it would be wrong or is no use: dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.estimators import dense_rank
from lightning_hessrank.hessian import Evaluation, LossCurvature, dense
from lightning_hessrank.hessian.blocks import Block
from lightning_hessrank.hessian.samples import SampleHessian
from lightning_hessrank.tolerance import machine_rtol
from tests.hessian.architectures import PARTS, Given, chain
from tests.hessian.conftest import Seen, assert_same
from tests.networks import Problem


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Again(nn.Module):
    """A weight that acts through its layer, and once more in some way."""

    def __init__(self, again: str) -> None:
        super().__init__()
        self.first, self.second, self.again = nn.Linear(4, 4), nn.Linear(4, 3), again

    def forward(self, x: Tensor) -> Tensor:
        w, h = self.first.weight, torch.tanh(self.first(x))
        if self.again == "gram":
            h = h @ (w @ w.T)
        if self.again == "transposed":
            h = h @ w
        if self.again == "square":
            h = h + (w**2).sum()
        return self.second(h)


class Embedded(nn.Module):
    """The embedding of its tokens is the head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.tokens(x).mean(1)))


class StepsFirst(nn.Module):
    """A linear layer sees steps, as many as there are samples, where samples should be."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x.transpose(0, 1)).cumsum(0).mean(0)))


class Cancelled(nn.Module):
    """What the first layer adds is taken away again: its part of the Hessian is exactly zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(4, 3), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        y = self.head(h) if len(x) > 2 else h @ self.head.weight.T + self.head.bias
        y = y + self.first(x)
        return y - (x @ self.first.weight.T + self.first.bias)


def contrastive(f: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(f @ f.T, torch.arange(len(f)))


# A problem, and the parts of its Hessian for which the shortcut is wrong.
WRONG = {
    "batch norm in training": (
        lambda: Given(
            chain(nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh()), torch.randn(5, 4)
        ),
        set(PARTS),
    ),
    "centred features": (lambda: Given(chain(nn.Tanh(), Centred()), torch.randn(5, 4)), set(PARTS)),
    "contrastive loss": (
        lambda: Given(chain(nn.Tanh()), torch.randn(5, 4), contrastive),
        {"total", "outer"},
    ),
    "weight in the output": (lambda: Given(Again("square"), torch.randn(5, 4)), set(PARTS)),
    "gram of a weight": (lambda: Given(Again("gram"), torch.randn(5, 4)), set(PARTS)),
    "transposed weight": (lambda: Given(Again("transposed"), torch.randn(5, 4)), set(PARTS)),
    "tied embedding": (lambda: Given(Embedded(), torch.randint(5, (4, 3))), set(PARTS)),
    "steps first": (lambda: Given(StepsFirst(), torch.randn(4, 4, 2)), set(PARTS)),
    "cancelled": (lambda: Given(Cancelled(), torch.randn(4, 4)), {"total", "outer"}),
    "nothing wrong": (lambda: Given(chain(nn.Tanh()), torch.randn(5, 4)), set()),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shortcut_is_dropped(name: str, part: str, sampling: Seen) -> None:
    build, wrong = WRONG[name]
    problem = build()
    curvature = LossCurvature(problem.function())
    calls: list[tuple[int, int]] = []
    matrix = curvature.operator(part).to_dense(lambda *done: calls.append(done))
    assert sampling.names != set()
    assert sampling.agreed == (part not in wrong)
    expected = problem.oracle()[part]
    assert_same(matrix, expected, float(expected.abs().max()), name)
    assert calls == sorted(calls)
    assert calls[-1] == (len(matrix), len(matrix))


@pytest.mark.parametrize("part", PARTS)
def test_layers_that_do_not_see_the_samples_are_left_to_products(part: str, sampling: Seen) -> None:
    problem = Given(StepsFirst(), torch.randn(4, 3, 2))
    matrix = LossCurvature(problem.function()).operator(part).to_dense()
    assert sampling.names == {"second.weight", "second.bias"}
    assert sampling.agreed
    expected = problem.oracle()[part]
    assert_same(matrix, expected, float(expected.abs().max()), part)


class WithPenalty(Given):
    """A loss that depends on a weight by itself, besides the output."""

    def _evaluate(self, x: Tensor, y: Tensor) -> Evaluation:
        loss, outputs = super()._evaluate(x, y)
        return Evaluation(loss + 0.05 * (self.net[0].weight ** 2).sum(), outputs)


@pytest.mark.parametrize("part", PARTS)
def test_penalty_in_the_loss_is_in_the_hessian_but_in_neither_part(
    part: str, sampling: Seen
) -> None:
    problem = WithPenalty(chain(nn.Tanh()), torch.randn(5, 4))
    matrix = LossCurvature(problem.function()).operator(part).to_dense()
    assert sampling.names == set(problem.parameters)
    assert sampling.agreed == (part != "total")
    expected = problem.oracle()[part]
    if part == "total":
        expected.diagonal()[:16] += 0.1
    assert_same(matrix, expected, float(expected.abs().max()), part)


class Separate(Given):
    """Two outputs, each with a loss."""

    def _evaluate(self, x: Tensor, y: Tensor) -> Evaluation:
        first, second = self.net(x).split([2, 1], dim=1)
        return Evaluation(split_loss(torch.cat([first, second], 1), y), (first, second))


class Unknown(Given):
    """The loss's output is not known."""

    def _evaluate(self, x: Tensor, y: Tensor) -> Evaluation:
        return super()._evaluate(x, y)._replace(outputs=())


def split_loss(f: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(f[:, :2], y.clamp(max=1)) + (f[:, 2] ** 4).mean()


@pytest.mark.parametrize(
    ("why", "part", "taken"),
    [
        ("two outputs", "total", False),
        ("two outputs", "functional", True),
        ("unknown output", "total", False),
        ("too many numbers", "total", False),
        ("too many numbers", "outer", False),
        ("too many numbers", "functional", True),
        ("too little memory", "functional", False),
        ("nothing", "outer", True),
    ],
)
def test_left_to_products(
    why: str, part: str, taken: bool, sampling: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"two outputs": Separate, "unknown output": Unknown}
    loss = split_loss if why == "two outputs" else F.cross_entropy
    problem = kinds.get(why, Given)(chain(nn.Tanh()), torch.randn(5, 4), loss)
    if why == "too many numbers":
        monkeypatch.setattr("lightning_hessrank.hessian.root.MAX_OUTPUTS", 2)
    if why == "too little memory":
        monkeypatch.setattr(SampleHessian, "bytes", 2**60)
    matrix = LossCurvature(problem.function()).operator(part).to_dense()
    assert sampling.names == (set(problem.parameters) if taken else set())
    assert sampling.agreed is (True if taken else None)
    expected = problem.oracle()[part]
    assert_same(matrix, expected, float(expected.abs().max()), why)


def refused_late() -> Given:
    problem = Given(Cancelled(), torch.randn(4, 4))
    problem.data.append((torch.randn(2, 4).double(), torch.tensor([0, 2])))
    return problem


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_left_of_batches_before_one_that_is_left_to_products(
    part: str, sampling: Seen
) -> None:
    problem = refused_late()
    matrix = LossCurvature(problem.function()).operator(part).to_dense()
    assert (sampling.names, sampling.agreed) == (set(), None)
    assert_same(matrix, problem.oracle()[part], 1.0, part)


@pytest.mark.usefixtures("sampling")
def test_progress_does_not_go_back_where_a_late_batch_is_left_to_products() -> None:
    calls: list[int] = []
    operator = LossCurvature(refused_late().function()).operator("functional")
    operator.to_dense(lambda done, _: calls.append(done))
    assert calls == sorted(calls)


def test_without_memory_for_blocks_there_are_products(
    sampling: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = SampleHessian.blocks

    def fail(error: Exception) -> Callable[[SampleHessian], Iterator[tuple[float, Block]]]:
        def some(self: SampleHessian) -> Iterator[tuple[float, Block]]:
            yield next(blocks(self))
            raise error

        return some

    problem = Given(chain(nn.Tanh()), torch.randn(5, 4))
    operator = LossCurvature(problem.function()).operator()
    monkeypatch.setattr(SampleHessian, "blocks", fail(MemoryError("no memory")))
    expected = problem.oracle()["total"]
    assert_same(operator.to_dense(), expected, float(expected.abs().max()), "products")
    assert sampling.agreed is None
    monkeypatch.setattr(SampleHessian, "blocks", fail(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        operator.to_dense()


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


def test_sparse_inputs_are_no_layers_but_measured() -> None:
    problem = Problem("mlp", sizes=(12,))
    x, y = problem.data[0]
    expected = dense_rank(LossCurvature(problem.function()).operator())
    problem.data = [(x.to_sparse(), y)]
    curvature = LossCurvature(problem.function())
    seen = dense_rank(curvature.operator())
    assert seen.rank == expected.rank
    assert float((seen.eigenvalues - expected.eigenvalues).abs().max()) < 1e-14


def test_cost_of_a_dense_matrix_says_which_way_it_takes(monkeypatch) -> None:
    problem = Problem("mlp", sizes=(12,))  # 53 parameters: three outputs, five inputs of the head
    operator = LossCurvature(problem.function()).operator()
    assert operator.dense_cost() == (3 + 5) / 4 + 53 / 8
    monkeypatch.setattr(dense, "sample", lambda *_: (None, frozenset()))
    assert operator.dense_cost() == 53 / 2

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(dense, "sample", no_memory)
    assert operator.dense_cost() == 53 / 2
