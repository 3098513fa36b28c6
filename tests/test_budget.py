"""What a budget buys: exact methods first, fewer samples last, small networks always exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_hessrank import budget
from lightning_hessrank.budget import TOTAL_SHARE, Cost, Plan, make_plan
from lightning_hessrank.results import RankBound
from lightning_hessrank.subject.step import model_step
from lightning_hessrank.subject.subject import Subject

GIB = 2**30


def subject(width: int, samples: int = 64) -> Subject:
    net = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 3))
    data = torch.randn(samples, 20), torch.randint(0, 3, (samples,))
    return Subject(net, [data], model_step(F.cross_entropy))


def cost(**changes: float) -> Cost:
    facts = {"dim": 10**6, "constant": 0.0, "each": 0.01, "bytes_each": 1e6, "sweep": 0.0}
    return Cost(**{**facts, "samples": 64, **changes})  # type: ignore[arg-type]


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, Cost]:
    """What products cost in each precision; changed by the tests. Looks cost nothing."""
    found = {torch.float64: cost(), torch.float32: cost()}
    monkeypatch.setattr(budget, "EVALUATIONS", 0)
    monkeypatch.setattr(budget, "LOOKS", 0)
    monkeypatch.setattr(Cost, "measured", lambda subject, memory: found[subject.dtype])
    return found


def test_a_small_network_is_exact_whatever_the_clock_says(
    costs: dict[torch.dtype, Cost], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs[torch.float64] = cost(each=1e6)
    small = make_plan(subject(100), max_seconds=0.1, memory=GIB)
    assert (small.method, small.num_samples, small.precision) == ("dense", None, "float64")
    monkeypatch.setattr(budget, "ALWAYS_DENSE", 100)
    assert make_plan(subject(100), max_seconds=0.1, memory=GIB).method == "lanczos"


def test_levers_are_pulled_in_order(costs: dict[torch.dtype, Cost]) -> None:
    large = subject(600)  # 13,803 parameters: no exact method within these times

    def plan(seconds: float) -> Plan:
        return make_plan(large, max_seconds=seconds, memory=64 * GIB)

    costs[torch.float64], costs[torch.float32] = cost(), cost(each=0.001)
    rich, poor, poorest = plan(3000), plan(60), plan(6)
    assert (rich.precision, rich.num_samples, rich.max_products) == ("float64", None, 1200)
    assert (poor.precision, poor.num_samples) == ("float32", None)
    assert 300 < poor.max_products < rich.max_products
    assert poorest.num_samples is not None
    assert 1 <= poorest.num_samples < 64
    assert poorest.max_products >= budget.ENOUGH_PRODUCTS
    assert f"on {poorest.num_samples} of 64 samples" in poorest.sentence  # never silently
    assert "on all 64 samples" in rich.sentence
    assert poorest.products("functional") == poorest.max_products // 2


def test_the_time_that_is_said_has_the_reorthogonalisation_in_it(
    costs: dict[torch.dtype, Cost],
) -> None:
    """Products that cost next to nothing, of a basis that costs 1e-3 s times its size squared."""
    costs[torch.float64] = cost(each=1e-9, sweep=1e-3)
    plan = make_plan(subject(600), max_seconds=60, memory=64 * GIB)
    assert plan.max_products == 154  # 24 s
    assert plan.seconds == pytest.approx(1e-3 * (154**2 + 77**2), rel=1e-3)


@pytest.mark.parametrize(
    ("each", "samples", "products"),
    [(0.001, 64, 375), (0.01, 32, 75), (0.03, 21, 38), (0.1, 8, 30), (0.5, 3, 16), (10.0, 1, 2)],
)
def test_samples_are_given_up_for_products_and_neither_for_the_other_alone(
    costs: dict[torch.dtype, Cost], each: float, samples: int, products: int
) -> None:
    """24 seconds buy so many products: 64 on 32 samples or more, then 32 on 8 or more, then 16."""
    costs[torch.float64] = costs[torch.float32] = cost(each=each)
    plan = make_plan(subject(600), max_seconds=60, memory=64 * GIB)
    assert (plan.num_samples or 64, plan.max_products) == (samples, products)


@pytest.mark.parametrize(
    ("looks", "evaluation", "left"), [(0, 0.0, 60), (10, 0.0, 52), (10, 8.0, 36), (10, 60.0, 30)]
)
def test_time_is_left_for_what_every_measurement_does_besides(
    costs: dict[torch.dtype, Cost],
    monkeypatch: pytest.MonkeyPatch,
    looks: int,
    evaluation: float,
    left: float,
) -> None:
    """Two evaluations of all samples, ten products of 0.8 s on eight; half of the time stays."""
    monkeypatch.setattr(budget, "EVALUATIONS", 2)
    monkeypatch.setattr(budget, "LOOKS", looks)
    costs[torch.float64] = costs[torch.float32] = cost(each=0.1)
    large = subject(600)
    large.seconds = evaluation
    plan = make_plan(large, max_seconds=60, memory=64 * GIB)
    assert plan.num_samples is not None
    products = TOTAL_SHARE * left / (0.1 * plan.num_samples)
    assert products - 1 < plan.max_products <= products


def test_float32_is_taken_only_where_it_pays_and_is_fine_enough(
    costs: dict[torch.dtype, Cost],
) -> None:
    large = subject(600)
    costs[torch.float32] = cost(each=0.009)
    assert make_plan(large, max_seconds=60, memory=4 * GIB).precision == "float64"
    costs[torch.float32] = cost(each=0.001)
    fine = make_plan(large, max_seconds=60, memory=4 * GIB, rtol=1e-6)
    assert fine.precision == "float64"


def test_samples_are_as_many_as_fit_into_memory(costs: dict[torch.dtype, Cost]) -> None:
    costs[torch.float64] = costs[torch.float32] = cost(each=1e-6, bytes_each=GIB / 16)
    plan = make_plan(subject(600), max_seconds=60, memory=2 * GIB)
    assert plan.num_samples == 16


@pytest.mark.parametrize(("is_theorem", "method"), [(True, "sketch"), (False, "lanczos")])
def test_a_theorem_makes_a_sketch_possible(
    costs: dict[torch.dtype, Cost], is_theorem: bool, method: str
) -> None:
    costs[torch.float64] = costs[torch.float32] = cost(each=1e-7, dim=13_803)
    bound = RankBound(200, 90, 150, (), 13_803, "patch", is_theorem=is_theorem, reason="It is so.")
    plan = make_plan(subject(600), max_seconds=60, memory=GIB, bound=bound)
    assert plan.method == method


@pytest.mark.parametrize("seconds", [0.01, 1.0, 30.0])
def test_products_and_their_orthogonalisation_fit_into_the_time(seconds: float) -> None:
    one = cost(sweep=1e-3, each=1e-3)
    products = one.products(64, seconds, 64 * GIB)

    def taken(m: int) -> float:
        return m * one.seconds(64) + one.sweep * m * m

    assert taken(products) <= seconds or products == 1
    assert taken(products + 1) > seconds
    assert one.products(64, 1e9, 10**6 * 8 * 116) == 100  # memory is the limit


def test_costs_are_measured_on_few_samples() -> None:
    found = Cost.measured(subject(40), GIB)
    assert (found.dim, found.samples) == (963, 64)
    assert 0 < found.seconds(64) < 10
    assert found.bytes_each > 0


def test_a_plan_survives_a_checkpoint() -> None:
    plan = Plan("lanczos", "float32", 12, 80, 3.0, "lanczos: so and so", 1e-1)
    assert Plan.from_dict(plan.to_dict()) == plan
    assert plan.dtype == torch.float32
