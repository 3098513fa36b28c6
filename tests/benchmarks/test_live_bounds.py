"""A sample of the sweep of live bounds: never below, and tight where the samples are no limit."""

from __future__ import annotations

import pytest

from tests.benchmarks.live_bounds import PARTS, results


@pytest.mark.usefixtures("double_precision")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("first", [5_000, 5_007, 5_014])
def test_no_bound_is_below_the_exact_rank(first: int) -> None:
    for one, bound, exact in results(7, first):
        for part in PARTS:
            assert getattr(bound, part) >= exact[part], (one.family, part)
        assert bound.total <= 1.45 * exact["total"]
        assert bound.is_theorem
