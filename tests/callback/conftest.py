"""Lightning's advice on tiny test runs is not what these tests are about."""

from __future__ import annotations

import pytest

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
