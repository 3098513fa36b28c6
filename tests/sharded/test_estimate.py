"""What an estimate of a sharded module tells, and what it takes: counted, not timed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sharded.processes import findings, launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("counted") / "run"
    launch(path, "tests.sharded.processes", "collectives", "deadline", "unsynchronised")
    return findings(path)


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
