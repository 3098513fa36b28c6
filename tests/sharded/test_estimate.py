"""What an estimate of a sharded module tells, and what it takes: counted, not timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.sharded.networks import data
from tests.sharded.processes import CASES, findings, once, wide_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = once(tmp_path_factory, "sharded-counts", tuple(CASES))
    each = {name: findings(path, name) for name in CASES}
    return [{name: found[i] for name, found in each.items()} for i in range(2)]


def test_a_product_takes_the_collectives_of_two_steps_of_training(
    found: list[dict[str, Any]],
) -> None:
    """As the README reckons: gathers forward and back, reductions, and flags besides."""
    for process in found:
        step, product = process["collectives"]
        for kind in ("gathers", "reductions"):
            assert product[kind] == 2 * step[kind]
            assert product[f"{kind} bytes"] == 2 * step[f"{kind} bytes"]
        assert product["reductions"] == 2 * 3  # of three layers
        assert product["others bytes"] <= 200


def test_all_processes_stop_at_the_deadline_of_any(found: list[dict[str, Any]]) -> None:
    ours, theirs = (process["deadline"] for process in found)
    assert ours == theirs
    assert ours < 60


def test_gradients_accumulated_without_reduction_are_kept(found: list[dict[str, Any]]) -> None:
    for process in found:
        assert process["unsynchronised"]


def test_a_steep_gradient_is_not_taken_for_a_wrong_one(found: list[dict[str, Any]]) -> None:
    """A unit along it, as long as the step for a random vector is, leaves the slope."""
    net = wide_network()
    inputs, labels = (torch.cat(x) for x in zip(*data(torch.float32), strict=True))
    F.cross_entropy(net(inputs), labels).backward()
    expected = float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())
    assert expected > 5
    for process in found:
        assert process["wide"] == pytest.approx(expected, rel=1e-4)
