"""Lightning's advice on tiny test runs is not what these tests are about."""

from __future__ import annotations

import pytest

from lightning_hessrank.monitor import bounds
from lightning_hessrank.results import RankBound

ADVICE = (
    ".*does not have many workers.*",
    ".*number of training batches.*",
    ".*requested to overfit.*",
    ".*LeafSpec.*",
    ".*SWA.*",
    ".*no `val_dataloader`.*",
    ".*callbacks used to create the checkpoint.*",
    ".*without a bound.*",
    ".*Swapping scheduler.*",
    ".*Checkpoint directory.*",
    ".*resume a mid-epoch.*",
    ".*epoch.*resum.*",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/callback" in item.nodeid:
            for advice in ADVICE:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{advice}"))


@pytest.fixture
def real_bounds() -> None:
    """Ask for the bounds of the networks themselves, which cost a second each."""


@pytest.fixture(autouse=True)
def _stub_bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_bounds" in request.fixturenames:
        return
    stub = RankBound(9, 5, 4, (), 9, "closed-form", is_theorem=False, reason="It is a stub.")
    monkeypatch.setattr(bounds, "reference_bound", lambda subject: stub)
