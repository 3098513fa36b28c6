"""No bound of any kind may be below the exact rank: hundreds of random architectures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from lightning_hessrank.api import rank_bound
from lightning_hessrank.bounds import sampling
from lightning_hessrank.results import RankBound
from tests.architectures import Case, random_case
from tests.oracles import exact_ranks
from tests.slow import first

pytestmark = pytest.mark.usefixtures("double_precision")


@contextmanager
def nothing_sampled() -> Iterator[None]:
    """The patch bound as it is for large networks: formula only, no column block sampled."""
    with mock.patch.object(sampling, "BUDGET", 0):
        yield


def bounds_of(case: Case) -> dict[str, RankBound]:
    """Every kind of bound for a case's network, loss and data."""

    def bound(kind: str) -> RankBound:
        example, x = case.inputs[:1], case.inputs
        return rank_bound(case.model, example, loss=case.loss, data=x, kind=kind)

    with nothing_sampled():
        bounds = {"formula": bound("patch")}
    return bounds | {kind: bound(kind) for kind in ("patch", "generic")}


def check(seed: int, **options: Any) -> None:
    case = random_case(seed, **options)
    exact = exact_ranks(case.model, case.inputs, case.loss)
    for kind, bound in bounds_of(case).items():
        assert bound.is_theorem
        assert bound.total >= exact["total"], kind
        assert bound.outer >= exact["outer"], kind
        assert bound.functional >= exact["functional"], kind
        if kind == "generic":
            assert (bound.outer, bound.functional) == (exact["outer"], exact["functional"])


@pytest.mark.parametrize("seed", first(1, range(40)))
def test_no_bound_is_below_the_exact_rank(seed: int) -> None:
    check(seed, max_parameters=150)


@pytest.mark.benchmark
@pytest.mark.parametrize("seed", range(40, 440))
def test_no_bound_is_below_the_exact_rank_of_hundreds_of_networks(seed: int) -> None:
    check(seed, max_parameters=300)
