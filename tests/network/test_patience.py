"""Work under a limit of time ends at the first call after it, and not before."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from lightning_hessrank.network.patience import OutOfTimeError, Within


def test_work_ends_when_its_time_is_over() -> None:
    done: list[Tensor] = []

    def work() -> None:
        with Within(0.05):
            while True:
                done.append(torch.ones(3))

    with pytest.raises(OutOfTimeError):
        work()
    assert done
    torch.ones(3)  # afterwards nothing is limited


def test_nothing_ends_before_its_time() -> None:
    with Within(3600.0):
        assert torch.ones(3).sum() == 3


def test_without_a_limit_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    with Within(None):
        monkeypatch.setattr(time, "perf_counter", lambda: 1e300)
        assert torch.ones(3).sum() == 3
