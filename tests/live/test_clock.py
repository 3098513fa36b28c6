"""The time budget and the progress bar, on a clock of our own."""

from __future__ import annotations

import io

import pytest
from tqdm import tqdm

from lightning_hessrank.monitor import progress
from lightning_hessrank.monitor.clock import Clock
from lightning_hessrank.monitor.progress import ProgressBar, TqdmBar, progress_bar


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


class Shown:
    """A bar that keeps what it was asked to show."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.states: list[tuple[int, int]] = []
        self.closed = False

    def show(self, done: int, total: int) -> None:
        self.states.append((done, total))

    def close(self) -> None:
        self.closed = True


def test_bar_appears_only_after_some_seconds() -> None:
    now, made = FakeTime(), list[Shown]()

    def make_bar(description: str) -> Shown:
        made.append(Shown(description))
        return made[-1]

    bar = ProgressBar(make_bar, "hessian rank", now)
    bar(1, 10)
    now.seconds = progress.PATIENCE - 0.1
    bar(2, 10)
    assert made == []
    now.seconds = progress.PATIENCE
    bar(3, 10)
    assert made[0].states == [(3, 10)]
    bar(9, 10)
    bar(0, 20)  # the next part
    bar(5, 20)
    assert made[0].states == [(3, 10), (9, 10), (0, 20), (5, 20)]
    assert not made[0].closed
    bar.close()
    assert [x.description for x in made] == ["hessian rank"]
    assert made[0].closed


def test_bar_of_tqdm_counts_stage_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    bar = TqdmBar("hessian rank")
    bar.show(9, 10)
    bar.show(5, 20)
    (open_bar,) = [x for x in tqdm._instances if x.desc == "hessian rank"]
    assert (open_bar.n, open_bar.total) == (5, 20)
    bar.close()
    assert "hessian rank" in shown.getvalue()
    assert shown.getvalue().endswith("\r")  # nothing is left on the line


def test_bar_can_be_switched_off() -> None:
    with progress_bar(None, "hessian rank") as bar:
        assert bar is None
