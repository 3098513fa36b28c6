"""A run that is told to end ends its measurement first: clusters give it some seconds only."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StoppedError(BaseException):
    """The process was told to end. No ``Exception``: nothing on the way may handle it and go on."""


@contextmanager
def obeying_sigterm() -> Iterator[None]:
    """Leave the block as soon as SIGTERM arrives; whoever handles the signal is told first.

    Lightning's own handler only notes the signal and ends the run after the present hook, which for
    a measurement may be a minute too late. Where nobody handles it the process ends at once anyway.

    Raises:
        StoppedError: the signal has arrived.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        before(number, frame)
        raise StoppedError("the run was told to end (SIGTERM)")

    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
