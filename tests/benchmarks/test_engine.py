"""The benchmarks' claims, as far as they do not hang on the machine: ``pytest -m benchmark``."""

from __future__ import annotations

import pytest

from tests.benchmarks import engine, subjects
from tests.benchmarks.coverage import CASES, coverage
from tests.benchmarks.peers import PEERS

pytestmark = pytest.mark.benchmark


@pytest.mark.skipif(not PEERS, reason="needs pip install lightning-hessrank[bench]")
@pytest.mark.parametrize(("build", "least"), [(subjects.mlp, 2.0), (subjects.cnn, 5.0)])
def test_exact_rank_is_the_same_and_sooner(build, least: float) -> None:
    ratios = engine.exact_rank(build, rounds=1)
    assert min(r for name, r in ratios.items() if name != "lightning-hessrank") >= least


def test_sketch_beats_the_dense_matrix() -> None:
    assert engine.sketch(rounds=1) >= 40


def test_product_costs_about_two_gradients() -> None:
    assert engine.resnet(rounds=3)["lightning-hessrank, one"] <= 2.3


@pytest.mark.parametrize(
    ("name", "rtol"), [(name, rtol) for name, (_, rtols) in CASES.items() for rtol in rtols]
)
def test_intervals_and_ranges_are_honest_without_exact_resolution(name: str, rtol: float) -> None:
    found = coverage(CASES[name][0](), rtol, 100)
    assert found.contained == 100
    assert found.covered >= 0.9 * found.resolved
    if found.resolved:
        assert found.half_width <= 0.25


def test_intervals_cover_the_dense_count() -> None:
    for covered, width in engine.coverage(1).values():
        assert covered >= 90
        assert width <= 1
