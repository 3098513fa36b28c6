"""What keeps a rank from being larger: the cap that it stands at, in words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lightning_hessrank.monitor.limits import limited_by
from lightning_hessrank.results import Measurement, RankBound, RankEstimate


def estimate(rank: float, part: Any = "total", **facts: Any) -> RankEstimate:
    given = {"std_error": 0.0, "rtol": 1e-3, "tolerance": 1e-3, "gap": None, "method": "dense"}
    given |= {"num_parameters": 100, "num_products": 0, "seconds": 0.0, "part": part}
    return RankEstimate(rank=rank, **{**given, **facts})


def bound(total: int, **facts: Any) -> RankBound:
    given = {"kind": "patch", "is_theorem": False, "reason": "", "outputs": 3}
    return RankBound(total, 60, 60, (), 100, **{**given, **facts})


PLAIN = Measurement(0, 0, estimate(70), outer=estimate(48, "outer"), bound=bound(90))


@pytest.mark.parametrize(
    ("measurement", "num_samples", "words"),
    [
        (PLAIN, 20, None),
        (replace(PLAIN, total=estimate(100)), 20, "the number of parameters"),
        (replace(PLAIN, bound=bound(70, is_theorem=True)), 20, "the bound 70 (theorem)"),
        (replace(PLAIN, bound=bound(70)), 20, None),  # of a reference line it is no limit
        (
            PLAIN,
            16,
            "the data, in its outer-product part: 16 samples × 3 outputs = 48",
        ),
        (replace(PLAIN, batch_bound=bound(70)), 20, "the batch bound 70"),
        (replace(PLAIN, total=estimate(math.nan)), 16, None),
        (replace(PLAIN, total=estimate(100.0, std_error=2.0)), 16, None),
        (replace(PLAIN, outer=None, bound=None), 16, None),
    ],
)
def test_the_limit_is_named(measurement: Measurement, num_samples: int, words: str | None) -> None:
    assert limited_by(measurement, num_samples) == words
