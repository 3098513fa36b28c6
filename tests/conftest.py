"""Shared by all tests: quiet Lightning, one thread (small matrices are fastest so)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from lightning_hessrank.monitor import bounds
from lightning_hessrank.results import RankBound

torch.set_num_threads(1)
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave benchmarks out unless ``-m`` speaks of them."""
    if "benchmark" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("benchmark")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("benchmark")]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Everything in float64, the precision of exact ranks."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def real_bounds() -> None:
    """Ask for the bounds of the networks themselves, where ``stub_bounds`` is the rule."""


@pytest.fixture
def stub_bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Monitors get a bound that costs nothing."""
    if "real_bounds" in request.fixturenames:
        return
    stub = RankBound(9, 5, 4, (), 9, "closed-form", is_theorem=False, reason="It is a stub.")
    monkeypatch.setattr(bounds, "reference_bound", lambda subject, **options: stub)
