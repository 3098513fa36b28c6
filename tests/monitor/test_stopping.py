"""A measurement ends when the process is told to end, and whoever handles the signal is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lightning_hessrank.monitor.stopping import StoppedError, obeying_sigterm


@pytest.fixture
def told() -> Iterator[list[int]]:
    """What the application's own handler was told."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def test_the_block_is_left_at_once_and_nothing_handles_it_on_the_way(told: list[int]) -> None:
    handler, reached = signal.getsignal(signal.SIGTERM), []

    def measure() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            reached.append("a broad handler")
        reached.append("the end")

    with (
        pytest.raises(StoppedError, match=r"^the run was told to end \(SIGTERM\)$"),
        obeying_sigterm(),
    ):
        measure()
    assert reached == []
    assert told == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_handler_is_as_before_afterwards(told: list[int]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with obeying_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert signal.getsignal(signal.SIGTERM) is handler
    os.kill(os.getpid(), signal.SIGTERM)
    assert told == [signal.SIGTERM]


def test_where_nobody_handles_the_signal_nothing_is_changed() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with obeying_sigterm():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
