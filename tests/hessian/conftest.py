"""To take, and to watch, the way to a dense matrix by derivatives of every sample."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from torch import Tensor

from lightning_hessrank.hessian.curvature import Curvature
from lightning_hessrank.hessian.dense import add_sampled
from lightning_hessrank.hessian.operator import agrees
from lightning_hessrank.hessian.samples import SampleHessian

ASSEMBLE = "lightning_hessrank.hessian.dense"


@dataclass
class Seen:
    """What the way by samples did in the last dense matrix."""

    names: set[str] = field(default_factory=set)
    agreed: bool | None = None


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The way by samples is taken at any cost, and watched."""
    seen = Seen()

    def add_and_look(curvature: Curvature, *args) -> frozenset[int]:
        found = add_sampled(curvature, *args)
        seen.names, seen.agreed = {curvature.names[i] for i in found}, None
        return found

    def check_and_look(found: Tensor, products: Tensor) -> bool:
        seen.agreed = agrees(found, products)
        return seen.agreed

    monkeypatch.setattr(SampleHessian, "cost", 0)
    monkeypatch.setattr(f"{ASSEMBLE}.add_sampled", add_and_look)
    monkeypatch.setattr(f"{ASSEMBLE}.agrees", check_and_look)
    return seen


def assert_same(found: Tensor, expected: Tensor, scale: float, what: str) -> None:
    error = float((found - expected).abs().max())
    assert error <= 1e-11 * max(float(expected.abs().max()), 1e-4 * scale), what
