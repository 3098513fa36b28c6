"""A sample of the sweep of live bounds: never below, and tight where the samples are no limit."""

from __future__ import annotations

import pytest

from tests.benchmarks.live_bounds import FAMILIES, PARTS, results


@pytest.mark.usefixtures("double_precision")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("first", [5_000, 5_008, 5_016])
def test_no_bound_is_below_the_exact_rank(first: int) -> None:
    for one, found, exact in results(len(FAMILIES), first):
        for kind, bound in found.items():
            assert bound.is_theorem
            for part in PARTS:
                assert getattr(bound, part) >= exact[part], (one.family, kind, part)
        assert found["live"].total <= 1.45 * exact["total"]
