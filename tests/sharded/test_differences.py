"""Products by differences of gradients, against dense Hessians of the unsharded network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.oracles import dense_hessian
from tests.sharded.networks import SINGLE, build, data
from tests.sharded.processes import findings, needed, once

CASES = (
    *("plain", "tied", "frozen", "checkpointed", "statistics", "accumulated"),
    *("single", "bfloat16", "float16", "autocast", "hybrid", "tensor"),
)
#: Whose products are too coarse for any of the tolerances.
COARSE = ("bfloat16", "autocast")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    path = once(tmp_path_factory, "sharded-products", CASES)
    return {name: findings(path, name) for name in CASES}


def hessian(name: str) -> torch.Tensor:
    return dense_hessian(build(name).double().eval(), F.cross_entropy, data())


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_one_process(
    found: dict[str, list[dict[str, Any]]], name: str
) -> None:
    matrix = hessian(name)
    for process in found[name]:
        first, second, *products = process["vectors"]
        for vector, product in zip((first, second), products, strict=True):
            error = torch.linalg.vector_norm(matrix @ vector - product)
            assert error <= process["resolution"].worst * torch.linalg.vector_norm(vector)


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        *[("plain", 1e-9), ("single", 1e-3)],
        *[("bfloat16", 0.3), ("float16", 0.1), ("autocast", 0.3)],
    ],
)
def test_the_resolution_is_that_of_the_precision(
    found: dict[str, list[dict[str, Any]]], name: str, digits: float
) -> None:
    largest = float(torch.linalg.eigvalsh(hessian(name)).abs().max())
    assert digits / 1e3 < found[name][0]["resolution"].worst / largest < digits


@pytest.mark.parametrize("name", CASES)
def test_trace_and_largest_eigenvalue_are_within_their_errors(
    found: dict[str, list[dict[str, Any]]], name: str
) -> None:
    values = torch.linalg.eigvalsh(hessian(name))
    total = found[name][0]["ranks"].total
    expected = {"trace": values.sum(), "largest": values.max(), "smallest": values.min()}
    for key, value in expected.items():
        error = total.standard_errors[key]
        assert abs(getattr(total, key) - float(value)) <= 4 * error, key
        assert error < 2 * values.abs().sum()


@pytest.mark.parametrize("name", CASES)
def test_counts_are_told_only_where_they_are_right(
    found: dict[str, list[dict[str, Any]]], name: str
) -> None:
    values = torch.linalg.eigvalsh(hessian(name)).abs()
    total = found[name][0]["ranks"].total
    assert bool(total.counts) is (name not in COARSE)
    for rtol, count in total.counts.items():
        exact = int((values > rtol * values.max()).sum())
        error = total.count_errors[rtol]
        assert abs(count - exact) <= 4 * error
        assert error < 0.1 * len(values)
    if name not in SINGLE:
        assert set(total.count_errors.values()) == {0.0}
        assert min(total.counts) == 1e-6


@pytest.mark.parametrize("name", COARSE)
def test_too_coarse_products_say_so(found: dict[str, list[dict[str, Any]]], name: str) -> None:
    ranks = found[name][0]["ranks"]
    assert ranks.total.rank != ranks.total.rank
    assert "compute in a higher precision" in ranks.notes[-1]


@pytest.mark.parametrize("name", [x for x in CASES if needed(x) == 2])
def test_vectors_are_divided_among_processes(
    found: dict[str, list[dict[str, Any]]], name: str
) -> None:
    stored = [process["stored"] for process in found[name]]
    assert sum(stored) == found[name][0]["dim"]
    assert max(stored) < 0.7 * found[name][0]["dim"]  # rows that do not divide evenly
