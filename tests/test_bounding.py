"""Bounds of a subject obey a limit of time, and make exact methods cheap."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_hessrank import HessianRankMonitor, bounding, hessian_rank, rank_bound
from lightning_hessrank.bounding import (
    BoundOutOfTimeError,
    reference_batch_bound,
    reference_bound,
)
from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.results import BoundNotAvailableError
from lightning_hessrank.subject.step import model_step, module_step
from lightning_hessrank.subject.subject import Subject
from tests.oracles import symmetric_rank
from tests.training import QUIET, loader, plain_module

BOUNDS = [reference_bound, reference_batch_bound]


def subject(net: nn.Module) -> Subject:
    data = torch.randn(7, 4), torch.randn(7, 3)
    return Subject(net, [data], model_step(F.mse_loss))


@pytest.mark.parametrize("find", BOUNDS)
def test_a_bound_that_takes_too_long_is_given_up(find: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    with pytest.raises(BoundOutOfTimeError) as caught:
        find(subject(net), max_seconds=1e-9)
    assert str(caught.value) == (
        "it takes longer than 1e-09 s, what the time budget leaves for it; a larger max_seconds "
        "gives it time (rank_bound and batch_bound have no limit)"
    )
    assert find(subject(net), max_seconds=3600).total == find(subject(net)).total


class Scaled(nn.Module):
    """Its outputs are multiplied by a learned number without a dimension: a temperature."""

    def __init__(self, scale: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.temperature, self.shift = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.ones(3))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.body(x), self.temperature) + self.shift * self.temperature


@pytest.mark.parametrize(
    "scale",
    [lambda y, t: y * t, lambda y, t: y * t.exp(), lambda y, t: F.softplus(t * y), lambda y, t: y],
    ids=["times t", "times exp t", "inside an activation", "the shift alone"],
)
@pytest.mark.parametrize("loss", [F.mse_loss, F.cross_entropy])
@pytest.mark.usefixtures("double_precision")
def test_parameters_without_a_dimension_are_bounded(scale: Any, loss: Any) -> None:
    torch.manual_seed(0)
    targets = torch.randn(9, 3) if loss is F.mse_loss else torch.randint(0, 3, (9,))
    found = Subject(Scaled(scale), [(torch.randn(9, 4), targets)], model_step(loss))
    bound = reference_batch_bound(found)
    hessian = LossCurvature(found.loss_function()).operator().to_dense()
    assert symmetric_rank(hessian) <= bound.total <= bound.num_parameters
    assert bound.is_theorem


def test_where_only_a_theorem_helps_nothing_else_is_sought() -> None:
    linear = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    assert reference_bound(subject(linear), theorem_only=True).is_theorem
    with pytest.raises(BoundNotAvailableError, match="tanh"):
        reference_bound(subject(nn.Sequential(*linear, nn.Tanh())), theorem_only=True)


def test_a_batch_bound_that_took_too_long_is_not_sought_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sought: list[float | None] = []

    def impatient(found: Subject, max_seconds: float | None = None) -> Any:
        sought.append(max_seconds)
        return reference_batch_bound(found, 1e-9)

    monkeypatch.setattr(
        "lightning_hessrank.monitor.bounds.reference_batch_bound", impatient, raising=True
    )
    monitor = HessianRankMonitor(on_error="raise", max_seconds=20)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pl.Trainer(**QUIET, max_epochs=2, callbacks=[monitor]).fit(
            plain_module(pl, net=nn.Linear(4, 3)), loader()
        )
    assert len(monitor.history) == 3
    assert len([x for x in said if "without the batch bound" in str(x.message)]) == 1
    assert len(sought) == 1
    assert sought[0] is not None
    assert 3 <= sought[0] <= 20
    assert "batch_bound" not in monitor.history[-1]


def test_a_linear_network_is_measured_from_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in [(3, 60), (60, 60), (60, 2)]))
    data = torch.randn(20, 3), torch.randn(20, 2)
    limits: list[int | None] = []
    measure = bounding.reference_bound

    def listening(*args: Any, **kwargs: Any) -> Any:
        bound = measure(*args, **kwargs)
        limits.append(bound.total)
        return bound

    monkeypatch.setattr("lightning_hessrank.api.reference_bound", listening)
    # On a fast machine a dense matrix takes less than these seconds, and answers more.
    monkeypatch.setattr("lightning_hessrank.estimators.choose.DENSE_PATIENCE", 0.0)
    found = hessian_rank(net, "mse", data)
    assert found.method == "sketch"
    assert limits == [int(found.rank)]


class Sparing(TorchDispatchMode):
    """Notes dense results as large as a matrix of samples by samples."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self._limit = samples**2
        self.large: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if not isinstance(x, torch.Tensor) or x.layout is not torch.strided:
                continue
            if x.untyped_storage().nbytes() // x.element_size() >= self._limit:
                self.large.append(f"{func} makes {tuple(x.shape)}")
        return result


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_large_sparse_adjacency_is_never_made_dense(layout: torch.layout) -> None:
    size = 1100
    edges = torch.stack([torch.arange(size), (7 * torch.arange(size) + 1) % size])
    values = torch.rand(size) + 0.5
    shape = (size, size)
    adjacency = torch.sparse_coo_tensor(edges, values, shape, check_invariants=True).coalesce()
    if layout is torch.sparse_csr:
        adjacency = adjacency.to_sparse_csr()

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 2), nn.Linear(2, 3)

        def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            x, a = batch
            return self.outer(torch.sparse.mm(a, self.inner(x)))

    torch.manual_seed(0)
    net, data = Graph(), ((torch.randn(size, 4), adjacency), torch.randint(0, 3, (size,)))
    graph = Subject(net, [data], model_step(F.cross_entropy))
    with Sparing(size) as sparing:
        bounds = [reference_batch_bound(graph), reference_bound(graph)]
    assert not sparing.large
    exact = hessian_rank(net, F.cross_entropy, data, method="dense").rank
    assert 0 < exact < sum(p.numel() for p in net.parameters())
    assert all(exact <= bound.total for bound in bounds)


def plain_targets(net: nn.Module, b: Any) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(
        net(b[0]), torch.from_numpy(b[1].numpy() > 0).to(b[0])
    )


def weighted(net: nn.Module, b: Any) -> torch.Tensor:
    if b[2].requires_grad:
        raise RuntimeError("the derivative for 'weight' is not implemented")
    return (b[2][:, None] * F.mse_loss(net(b[0]), b[1], reduction="none")).mean()


@pytest.mark.parametrize("step", [plain_targets, weighted])
@pytest.mark.usefixtures("double_precision")
def test_what_must_have_no_gradient_is_no_input(step: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    batch = torch.randn(6, 4), torch.randn(6, 2), torch.rand(6)
    bound = reference_bound(Subject(net, [batch], module_step(net, step)))
    loss = F.binary_cross_entropy_with_logits if step is plain_targets else F.mse_loss
    expected = rank_bound(net, batch[0], data=batch[0], loss=loss)
    assert bound.is_theorem
    assert (bound.total, bound.outer, bound.functional) == (
        expected.total,
        expected.outer,
        expected.functional,
    )


def test_what_refuses_every_gradient_says_why() -> None:
    net = nn.Linear(4, 2)

    def step(module: nn.Module, b: Any) -> torch.Tensor:
        return F.mse_loss(module(torch.from_numpy(b[0].numpy())), b[1])

    batch = torch.randn(6, 4), torch.randn(6, 2)
    with pytest.raises(
        BoundNotAvailableError, match=r"activations \(RuntimeError: Can't call numpy"
    ):
        reference_bound(Subject(net, [batch], module_step(net, step)))


def test_nodes_and_edges_are_not_samples_of_one_batch() -> None:
    net = nn.ModuleDict({"nodes": nn.Linear(3, 4), "edges": nn.Linear(2, 4)})

    def step(module: Any, b: Any) -> torch.Tensor:
        x, edges, places, y = b
        h = module["nodes"](x)
        return F.mse_loss(h.index_add(0, places[1], module["edges"](edges)), y)

    places = torch.randint(0, 19, (2, 30))
    batch = torch.randn(19, 3), torch.randn(30, 2), places, torch.randn(19, 4)
    subject = Subject(net, [batch], module_step(net, step))
    with pytest.raises(
        BoundNotAvailableError, match=r"not samples of one batch \(of 19, 30 rows\)"
    ):
        reference_bound(subject)
    assert reference_batch_bound(subject).is_theorem


def test_a_batch_bound_that_is_sure_to_take_too_long_is_not_begun() -> None:
    slow = subject(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    slow.seconds = 1.0
    slow.evaluate = None  # type: ignore[assignment]
    with pytest.raises(BoundOutOfTimeError, match=r"it takes longer than 9\.9 s"):
        reference_batch_bound(slow, max_seconds=9.9)


def test_a_slow_network_has_the_bound_of_a_quick_one() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    low_rank = torch.randn(40, 3) @ torch.randn(3, 6)
    quick, slow = (
        Subject(net, [(low_rank, torch.randn(40, 4))], model_step(F.mse_loss)) for _ in range(2)
    )
    slow.seconds = 100.0
    expected, found = (reference_bound(x, max_seconds=60.0) for x in (quick, slow))
    assert slow.quick(3.0).num_samples == 8
    assert (found.total, found.outer, found.functional, found.is_theorem) == (
        expected.total,
        expected.outer,
        expected.functional,
        True,
    )


def test_a_step_that_goes_another_way_with_other_numbers_says_so() -> None:
    """Another loss where no output is small, as in the matching of boxes."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))

    def step(module: Any, b: Any) -> torch.Tensor:
        f = module(b[0])
        kept = f.detach().abs().amax(1) < 0.5
        return F.mse_loss(f[kept], b[1][kept]) if bool(kept.any()) else 0.1 * f.square().mean()

    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.1)
    batch = 0.1 * torch.randn(7, 4), torch.randn(7, 3)
    with pytest.raises(
        BoundNotAvailableError, match="the step goes another way with other numbers"
    ):
        reference_bound(Subject(net, [batch], module_step(net, step)))
