"""The time budget and the progress bar, on a clock of our own."""

from __future__ import annotations

import pytest

from lightning_hessrank.monitor.clock import Clock
from tests.monitor.fake_time import FakeTime


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
