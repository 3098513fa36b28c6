"""The estimators by name: what ``method=`` takes, in every door."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning_hessrank.hessian.operator import Progress, SymmetricOperator
from lightning_hessrank.results import Part, RankEstimate


@dataclass(frozen=True)
class Request:
    """What a door asks of an estimator, which heeds what concerns it."""

    rtol: float | None = None
    """Relative tolerance of the count; ``None``: the method's own."""
    max_rank: int | None = None
    """A known upper bound on the rank."""
    seed: int = 0
    """Of random probes."""
    memory_limit: int | None = None
    """Bytes; ``None``: half of what is free."""
    part: Part = "total"
    """What the operator is, for the result."""
    progress: Progress | None = None
    """Called between blocks of products with (done, total)."""
    counts: bool = False
    """Whether counts at larger tolerances are worth some time."""
    max_products: int | None = None
    """Largest number of products; ``None``: the method's own."""
    deadline: float | None = None
    """When to stop and tell what is known by then, as :func:`time.perf_counter` counts."""


#: From an operator, known by its products, to the rank of its matrix.
Estimator = Callable[[SymmetricOperator, Request], RankEstimate]

#: Whatever :func:`estimator` has named.
ESTIMATORS: dict[str, Estimator] = {}


def estimator(name: str) -> Callable[[Estimator], Estimator]:
    """Decorate an estimator, so that ``method=name`` means it.

    Raises:
        ValueError: the name is taken.
    """
    if name in ("auto", *ESTIMATORS):
        raise ValueError(f"there is a method {name!r} already; choose another name")

    def register(function: Estimator) -> Estimator:
        ESTIMATORS[name] = function
        return function

    return register


def method_names() -> tuple[str, ...]:
    """Everything that ``method=`` takes."""
    return ("auto", *ESTIMATORS)
