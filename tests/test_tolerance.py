"""The one definition of a numerical rank: its cut, its gap, and where it has none."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_hessrank.tolerance import check_rtol, machine_rtol, numerical_rank


@pytest.mark.parametrize(
    ("values", "rtol", "rank", "gap"),
    [
        ([], None, 0, math.inf),
        ([0.0, 0.0], None, 0, None),
        ([0.0, -3.0], None, 1, math.inf),
        ([1.0, -8.0, 2.0], None, 3, math.inf),
        ([1.0, 0.5, 1e-3, 1e-9], 1e-2, 2, 500.0),
        ([1.0, 0.1], 0.1, 1, 10.0),  # beyond the cut, not at it
        ([1.0, 1e-300], 0.0, 2, math.inf),
    ],
)
def test_rank_and_gap(values: list[float], rtol: float | None, rank: int, gap: float) -> None:
    found = numerical_rank(torch.tensor(values, dtype=torch.float64), rtol)
    assert found.rank == rank
    assert found.gap == (gap if gap is None else pytest.approx(gap))
    assert found.tolerance == found.rtol * max(map(abs, values), default=0.0)


@given(st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), max_size=12), st.integers(-20, 20))
def test_neither_order_nor_sign_nor_scale_matters(values: list[float], power: int) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    rank = numerical_rank(x, 1e-3).rank
    assert numerical_rank(-x.flip(0), 1e-3).rank == rank
    assert numerical_rank(x * 2.0**power, 1e-3).rank == rank


def test_machine_precision_is_that_of_size_and_dtype() -> None:
    assert machine_rtol(10) == 10 * 2.0**-52
    assert machine_rtol(10, torch.float32) == 10 * 2.0**-23
    assert numerical_rank(torch.ones(7)).rtol == machine_rtol(7, torch.float32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(2, 2), r"numerical_rank needs a vector of values, got shape \(2, 2\)"),
        (torch.tensor([math.nan]), "numerical_rank needs finite values, got nan or inf among them"),
    ],
)
def test_what_has_no_rank_is_refused(values: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        numerical_rank(values)


@pytest.mark.parametrize("rtol", [-1e-9, 1, 1.0, math.nan, math.inf, "0.1", None])
def test_what_is_no_tolerance_is_refused(rtol: object) -> None:
    with pytest.raises(ValueError, match=r"^rtol must be a number in \[0, 1\) .*, got "):
        check_rtol(rtol)  # type: ignore[arg-type]
