"""Shared by all tests: quiet Lightning, one thread (small matrices are fastest so)."""

from __future__ import annotations

import logging

import pytest
import torch

torch.set_num_threads(1)
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
