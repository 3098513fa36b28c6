"""Estimates within a budget: exact where the data are few, honest elsewhere, and never nothing."""

from __future__ import annotations

import math
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_hessrank import budget
from lightning_hessrank.budget import Plan
from lightning_hessrank.estimators import UnresolvedError
from lightning_hessrank.measure import measure
from lightning_hessrank.results import PARTS
from lightning_hessrank.subject.step import model_step
from lightning_hessrank.subject.subject import Subject
from lightning_hessrank.tolerance import COUNT_TOLERANCES, numerical_rank
from tests.oracles import dense_hessian


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 4))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs whose sizes fall over three decades, so that the spectrum does."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 12, generator=generator) * torch.logspace(0, -3, 12)
    return x, torch.randint(0, 4, (30,), generator=generator)


def subject() -> Subject:
    return Subject(network(), [data()], model_step(F.cross_entropy))


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_outer_part_is_exact_and_the_total_in_its_interval(precision: str) -> None:
    plan = Plan("lanczos", precision, None, 200)  # type: ignore[arg-type]
    estimated, exact = measure(subject(), plan=plan), measure(subject(), method="dense")
    assert tuple(estimated.parts) == PARTS
    outer = estimated.parts["outer"]
    assert outer.method == "dense"
    for rtol in COUNT_TOLERANCES:
        assert outer.rank_at(rtol) == exact.parts["outer"].rank_at(rtol)
        low, high = estimated.total.range_at(rtol)
        assert low <= exact.total.rank_at(rtol) <= high
    assert estimated.total.counts[1e-1] == exact.total.rank_at(1e-1)
    assert estimated.loss == pytest.approx(exact.loss, rel=1e-12)


def test_the_dense_oracle_has_the_counts_that_are_told() -> None:
    x, y = data()
    hessian = dense_hessian(network().double(), F.cross_entropy, [(x.double(), y)])
    found = measure(subject(), plan=Plan("lanczos", "float64", None, 220)).total
    eigenvalues = torch.linalg.eigvalsh(hessian)
    exact = [t for t in found.counts if not found.count_errors.get(t)]
    assert 1e-1 in exact
    for rtol in exact:
        assert found.counts[rtol] == numerical_rank(eigenvalues, rtol).rank


def test_what_is_not_resolved_is_told_as_far_as_it_is_known() -> None:
    found = measure(subject(), plan=Plan("lanczos", "float64", None, 16), rtol=1e-6)
    exact = measure(subject(), method="dense").total
    assert math.isnan(found.total.rank)
    low, high = found.total.range_at(1e-6)
    assert low <= exact.rank_at(1e-6) <= high
    assert 0.5 * exact.largest < found.total.largest <= exact.largest * (1 + 1e-12)
    assert any(
        "the count of the total Hessian at rtol=1e-06 is not resolved" in x for x in found.notes
    )
    assert found.parts["outer"].rank == measure(subject(), method="dense").parts["outer"].rank_at(
        1e-6
    )


def test_the_headline_is_the_finest_resolved_tolerance_and_stays() -> None:
    plan = Plan("lanczos", "float64", None, 180)
    first = measure(subject(), plan=plan)
    assert first.plan is not None
    assert first.plan.headline == first.total.rtol == min(first.total.counts)
    assert first.total.rank == first.total.counts[first.total.rtol]
    richer = Plan("lanczos", "float64", None, 300, headline=1e-1)
    later = measure(subject(), plan=richer)
    assert (later.total.rtol, later.total.rank) == (1e-1, later.total.counts[1e-1])
    assert later.total.tolerance == pytest.approx(0.1 * later.total.largest, rel=1e-6)


def test_fewer_samples_are_the_first_ones() -> None:
    cut = measure(subject(), plan=Plan("lanczos", "float64", 10, 80))
    x, y = data()
    few = Subject(network(), [(x[:10], y[:10])], model_step(F.cross_entropy))
    assert cut.loss == measure(few, method="dense").loss


def test_a_deadline_ends_what_takes_too_long() -> None:
    plan = Plan("lanczos", "float64", None, 200)
    found = measure(subject(), plan=plan, deadline=time.perf_counter())
    assert found.total.num_products < measure(subject(), plan=plan).total.num_products
    assert "outer" in found.parts


def test_a_loss_that_couples_samples_has_no_outer_part_sample_by_sample() -> None:
    def contrastive(f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(f @ f.T, torch.arange(len(f)))

    coupled = Subject(network(), [data()], model_step(contrastive))
    found = measure(coupled, plan=Plan("lanczos", "float64", None, 60))
    assert found.parts["outer"].method == "lanczos"


class Graph(nn.Module):
    """Every node sees its neighbours, of which none may be missing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(hidden + hidden.roll(1, 0))


def test_a_batch_that_cannot_be_cut_is_estimated_whole() -> None:
    batch = torch.randn(30, 5), torch.randint(0, 3, (30,))
    graph = Subject(Graph(), [batch], model_step(F.cross_entropy))
    assert graph.least == graph.first(8).num_samples == 30
    assert graph.one_by_one() is None
    found = measure(graph, plan=Plan("lanczos", "float64", 8, 111))
    exact = measure(graph, method="dense")
    assert found.loss == pytest.approx(exact.loss, rel=1e-12)
    assert found.parts["outer"].rank_at(1e-3) == exact.parts["outer"].rank_at(1e-3)
    assert found.total.counts[1e-1] == exact.total.rank_at(1e-1)


def test_weights_of_batches_hold_for_samples_one_by_one_and_in_float32() -> None:
    """Class weights: the loss of two batches is not their mean by samples."""
    x, y = data()

    def weighted(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        weight = torch.tensor([1.0, 5.0, 0.5, 2.0]).to(output)
        return F.cross_entropy(output, target, weight=weight)

    parts = [(x[:10], y[:10]), (x[10:], y[10:])]
    split = Subject(network(), parts, model_step(weighted))
    joined = Subject(network(), [(x, y)], model_step(weighted))
    exact = measure(joined, method="dense")
    for precision, rel in (("float64", 1e-12), ("float32", 1e-5)):
        plan = Plan("lanczos", precision, None, 200)  # type: ignore[arg-type]
        found = measure(split, plan=plan)
        assert found.notes == ()
        assert found.total.largest == pytest.approx(exact.total.largest, rel=rel)
        assert found.parts["outer"].rank_at(1e-3) == exact.parts["outer"].rank_at(1e-3)


class Distances(nn.Module):
    """Has no second derivative by autograd."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.centres = nn.Linear(6, 5), nn.Parameter(torch.randn(4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(torch.tanh(self.map(x)), self.centres)


def written_out(net: Distances, x: torch.Tensor) -> torch.Tensor:
    return -(torch.tanh(net.map(x))[:, None] - net.centres).norm(dim=2)


class WrittenOut(Distances):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return written_out(self, x)


def test_estimates_from_differences_are_labelled_and_no_finer_than_they_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = torch.randn(20, 6), torch.randint(0, 4, (20,))
    monkeypatch.setattr(budget, "ALWAYS_DENSE", 10)
    monkeypatch.setattr(budget, "_exact", lambda *args, **kwargs: None)
    once = Subject(Distances(), [batch], model_step(F.cross_entropy))
    said: list[str] = []
    found = measure(once, max_seconds=600.0, announce=said.append)
    exact = measure(Subject(WrittenOut(), [batch], model_step(F.cross_entropy)), method="dense")
    assert found.plan is not None
    assert (found.plan.method, found.plan.precision) == ("lanczos", "float64")
    assert "cdist has no second derivative" in said[1]
    for part in PARTS:
        estimate = found.parts[part]
        assert estimate.products == "differences"
        assert estimate.resolution > 0
        assert all(rtol >= estimate.resolution for rtol in estimate.counts)
    assert found.total.counts[1e-1] == exact.total.rank_at(1e-1)
    with pytest.raises(UnresolvedError, match="not at 1e-14; pass a larger rtol"):
        measure(once, plan=found.plan, rtol=1e-14)
    monkeypatch.setattr("lightning_hessrank.estimating.resolution_of", lambda *args: 3e3)
    with pytest.raises(UnresolvedError, match="error is as large as themselves here"):
        measure(once, plan=found.plan)
