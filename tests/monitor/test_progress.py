"""The progress bar, on a clock of our own."""

from __future__ import annotations

import io

import pytest
from tqdm import tqdm

from lightning_hessrank.monitor import progress
from lightning_hessrank.monitor.progress import ProgressBar, TqdmBar, progress_bar
from tests.monitor.fake_time import FakeTime


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
