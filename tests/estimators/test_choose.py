"""The automatic choice: what decides, and what it says."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from torch import Tensor

from lightning_hessrank.estimators import (
    choose_method,
    dense_rank,
    estimate_rank,
    lanczos_rank,
    sketch_rank,
)
from lightning_hessrank.estimators.lanczos import default_probes
from lightning_hessrank.hessian import DenseOperator, LossCurvature
from lightning_hessrank.hessian.parts import PartOperator
from tests.estimators.planted import planted
from tests.networks import Problem

module = sys.modules["lightning_hessrank.estimators.choose"]


class Slow(DenseOperator):
    """Is said to take a while for every product; no test hangs on this machine's clock."""

    def __init__(self, matrix: Tensor, seconds: float) -> None:
        super().__init__(matrix)
        self.seconds = seconds


@pytest.fixture(autouse=True)
def _clock(monkeypatch) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "reorthogonalising", lambda *_: 0.0)
    monkeypatch.setattr(module, "seconds_per_product", lambda o: getattr(o, "seconds", 1e-6))
    monkeypatch.setattr(module, "seconds_per_cube", lambda o: 1e-10)


def test_costs_are_measured(monkeypatch) -> None:
    monkeypatch.undo()

    class Sleeping(DenseOperator):
        def matmat(self, vectors: Tensor) -> Tensor:
            time.sleep(1e-2 * vectors.shape[1])
            return super().matmat(vectors)

    operator = Sleeping(planted(torch.ones(3), 20).matrix)
    assert 1e-2 <= module.seconds_per_product(operator) < 1
    assert 0 < module.seconds_per_cube(operator) < 1e-5


def test_small_problems_are_dense() -> None:
    choice = choose_method(planted(torch.ones(20), 200))
    assert choice.method == "dense"
    assert choice.reason.startswith("dense: exact, about ")
    assert "(200 parameters, " in choice.reason
    assert choice.bytes == 32 * 200**2


def test_known_bound_makes_the_sketch_cheaper_where_products_cost(monkeypatch) -> None:
    monkeypatch.setattr(module, "DENSE_PATIENCE", 0.1)
    operator = Slow(planted(torch.ones(20), 600).matrix, 5e-3)
    assert choose_method(operator).method == "dense"
    choice = choose_method(operator, max_rank=20)
    assert choice.method == "sketch"
    assert choice.reason.startswith("sketch: exact, about ")
    assert choose_method(operator, max_rank=20, rtol=1e-3).method == "dense"  # no gap is known


def test_lanczos_where_patience_or_memory_end() -> None:
    operator = Slow(planted(torch.ones(20), 600).matrix, 5e-3)
    impatient = choose_method(operator, patience=0.5)
    assert impatient.method == "lanczos"
    assert impatient.reason.startswith("lanczos: an exact rank would take about 1.52 s (")
    assert impatient.reason.endswith("); at most 600 products for each part, 3 s")
    assert (impatient.seconds, impatient.bytes) == (600 * 5e-3, (600 + 4 * 8) * 600 * 8)
    small = choose_method(operator, memory_limit=10**6)
    assert small.method == "lanczos"
    assert small.reason.startswith("lanczos: an exact rank would take 0.0 GiB (600 parameters, ")
    assert "; at most 176 products for each part, " in small.reason
    assert small.bytes <= 10**6


def test_nothing_fits_is_said_before_anything_is_started() -> None:
    with pytest.raises(MemoryError, match=r"^no method fits: an exact rank would take 0"):
        choose_method(planted(torch.ones(20), 600), memory_limit=10**5)


def test_small_networks_are_exact_whatever_the_clock_says(monkeypatch) -> None:
    """A busy machine makes products look slow."""
    operator = Slow(planted(torch.ones(20), 600).matrix, 100.0)
    monkeypatch.setattr(module, "SMALL", 600)
    choice = choose_method(operator)
    assert (choice.method, choice.seconds > 3600) == ("dense", True)
    monkeypatch.setattr(module, "SMALL", 500)
    assert choose_method(operator).method == "lanczos"


def test_reorthogonalising_is_counted(monkeypatch) -> None:
    monkeypatch.undo()
    operator = planted(torch.ones(20), 600)
    few, many = (module.reorthogonalising(operator, size, 8) for size in (100, 400))
    assert 0 < few < many < 60
    clock = iter([0.3, 0.1, 0.2, 9.0])
    monkeypatch.setattr(module, "_timed", lambda *_: next(clock))
    assert module._best(lambda: None, operator.device) == 0.1
    assert module._best(lambda: None, operator.device) == 9.0  # long ones are not repeated


def test_blocks_are_as_wide_as_the_operator_multiplies() -> None:
    operator = planted(torch.logspace(0, -3, 300))
    wide = lanczos_rank(operator, rtol=1e-1)
    operator.block_size = 1
    narrow = lanczos_rank(operator, rtol=1e-1)
    assert (wide.num_probes, narrow.num_probes) == (8, 4)
    assert wide.rank == narrow.rank
    assert narrow.num_products < wide.num_products


@pytest.mark.parametrize(
    ("seconds", "text"), [(1e-3, "1 ms"), (5, "5 s"), (600, "10 min"), (36000, "10 h")]
)
def test_durations_are_said_in_units_that_people_use(seconds: float, text: str) -> None:
    choice = choose_method(Slow(planted(torch.ones(2), 20).matrix, seconds / 20), patience=0)
    assert choice.reason.endswith(f"at most 20 products for each part, {text}")


@pytest.mark.parametrize(
    ("method", "direct"),
    [("dense", dense_rank), ("sketch", sketch_rank), ("lanczos", lanczos_rank)],
)
def test_named_method_is_what_runs(method, direct) -> None:
    operator = planted(torch.ones(9), 90)
    estimate = estimate_rank(operator, method=method, rtol=1e-3, part="outer")
    assert (estimate.method, estimate.part) == (method, "outer")
    assert estimate.rank == direct(operator, rtol=1e-3).rank == 9


def test_dense_is_preferred_while_it_takes_seconds() -> None:
    """Its spectrum answers at every tolerance; a sketch's does not."""
    operator = Slow(planted(torch.ones(20), 600).matrix, 5e-3)
    assert choose_method(operator, max_rank=20).method == "dense"


def test_auto_runs_its_choice_and_passes_the_bound_on(monkeypatch) -> None:
    monkeypatch.setattr(module, "DENSE_PATIENCE", 0.1)
    operator = Slow(planted(torch.ones(20), 600).matrix, 1e-3)
    estimate = estimate_rank(operator, max_rank=30)
    assert (estimate.method, estimate.rank) == ("sketch", 20)
    assert estimate.num_products < 60


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (
            "dense",
            "the dense matrix of 300 parameters needs about 0.0027 GiB, but the limit is 9.3e-05 "
            "GiB; use method='sketch' with a max_rank, or method='lanczos'",
        ),
        (
            "sketch",
            "a sketch with 72 columns needs 0.00012 GiB, but the limit is 9.3e-05 GiB; use "
            "method='lanczos', or pass a larger memory_limit",
        ),
        (
            "lanczos",
            "lanczos keeps its basis in memory: 64 vectors of 300 numbers need 0.00014 GiB, but "
            "the limit is 9.3e-05 GiB; pass fewer num_probes or a larger memory_limit",
        ),
    ],
)
def test_nothing_is_started_that_would_exceed_the_memory(method: str, text: str) -> None:
    operator = planted(torch.ones(9), 300)
    operator.matmat = None  # type: ignore[assignment]  # any product would fail
    with pytest.raises(MemoryError) as caught:
        estimate_rank(operator, method=method, memory_limit=10**5)
    assert str(caught.value) == text


def test_cost_of_a_dense_matrix_is_asked_only_where_it_fits(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(PartOperator, "dense_cost", lambda self: asked.append(self.dim) or 1.0)
    operator = LossCurvature(Problem("mlp").function()).operator()
    choose_method(operator, memory_limit=5 * 10**4)
    assert asked == []
    choose_method(operator)
    assert asked == [operator.dim]


@pytest.mark.parametrize(
    ("block", "products", "probes"),
    [
        (8, 80, 8),
        (8, 79, 4),
        (8, 40, 4),
        (8, 39, 2),
        (8, 3, 2),
        (1, 40, 4),
        (1, 39, 2),
        (8, 300, 8),
    ],
)
def test_probes_are_given_up_for_powers_of_the_matrix(
    block: int, products: int, probes: int
) -> None:
    operator = planted(torch.logspace(0, -3, 300))
    operator.block_size = block
    assert default_probes(operator, products) == probes


def test_probes_of_a_small_matrix_are_not_given_up() -> None:
    """Its whole space fits, whatever the number of probes."""
    operator = planted(torch.logspace(0, -3, 30))
    assert default_probes(operator, 30) == 8
