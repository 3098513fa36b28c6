"""The progress bar, on a clock of our own."""

from __future__ import annotations

import io

import pytest

from lightning_hessrank.monitor import progress
from lightning_hessrank.monitor.progress import ProgressBar, progress_bar
from tests.monitor.fake_time import FakeTime


def test_bar_appears_only_after_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, shown = FakeTime(), io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    bar = ProgressBar("hessian rank", now)
    bar(1, 10)
    now.seconds = progress.PATIENCE - 0.1
    bar(2, 10)
    assert bar._bar is None
    now.seconds = progress.PATIENCE
    bar(3, 10)
    assert (bar._bar.n, bar._bar.total) == (3, 10)
    bar(9, 10)
    bar(0, 20)  # the next part
    assert (bar._bar.n, bar._bar.total) == (0, 20)
    bar(5, 20)
    assert bar._bar.n == 5
    bar.close()
    assert "hessian rank" in shown.getvalue()


def test_bar_can_be_switched_off() -> None:
    with progress_bar(False, "hessian rank") as bar:
        assert bar is None
