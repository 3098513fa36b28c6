"""The time budget and the progress bar, on a clock of our own."""

from __future__ import annotations

import io

import pytest

from lightning_hessrank.monitor.clock import Clock
from lightning_hessrank.monitor.progress import ProgressBar, progress_bar
from lightning_hessrank.monitor import progress


class FakeTime:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_overhead_is_the_share_of_measuring_and_survives_resume() -> None:
    now = FakeTime()
    clock = Clock(now)
    assert clock.overhead() == clock.projected_overhead() == 0.0
    clock.start()
    now.seconds = 6.0
    with clock.measuring():
        now.seconds = 8.0
    assert clock.overhead() == 2 / 8
    assert clock.projected_overhead() == 4 / 10
    later = Clock(now)
    later.load_state_dict(clock.state_dict())
    now.seconds = 100.0  # the time in between does not count
    later.start()
    now.seconds = 108.0
    assert later.overhead() == 2 / 16
    assert later.projected_overhead() == 4 / 18


def test_time_between_two_fits_does_not_count() -> None:
    now = FakeTime()
    clock = Clock(now)
    clock.start()
    now.seconds = 3.0
    clock.stop()
    now.seconds = 50.0
    clock.start()
    now.seconds = 54.0
    assert clock.elapsed == 7.0


def test_a_measurement_that_fails_counts_too() -> None:
    now = FakeTime()
    clock = Clock(now)
    clock.start()

    def fail() -> None:
        with clock.measuring():
            now.seconds = 3.0
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail()
    assert clock.measured == 3.0


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
