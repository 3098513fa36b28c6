"""How much of the wall time of a run goes into measuring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Adds up the time spent training and the time spent measuring, across resume.

    Args:
        now: seconds on a monotonic clock; exchanged in tests.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._before = 0.0
        self._started: float | None = None
        self._last = 0.0
        self.measured = 0.0

    def start(self) -> None:
        """Begin, or go on after :meth:`stop` or in a resumed run."""
        self._before = self.elapsed
        self._started = self._now()

    def stop(self) -> None:
        """End, until :meth:`start` is called again."""
        self._before = self.elapsed
        self._started = None

    @property
    def elapsed(self) -> float:
        """Seconds of the run so far, measuring included."""
        running = 0.0 if self._started is None else self._now() - self._started
        return self._before + running

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the time inside as measuring."""
        began = self._now()
        try:
            yield
        finally:
            self._last = self._now() - began
            self.measured += self._last

    def overhead(self) -> float:
        """Share of the run's wall time that went into finished measurements, in [0, 1]."""
        return self.measured / self.elapsed if self.elapsed > 0 else 0.0

    def projected_overhead(self) -> float:
        """Return what :meth:`overhead` would be after one more measurement as long as the last."""
        after = self.elapsed + self._last
        return (self.measured + self._last) / after if after > 0 else 0.0

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"elapsed": self.elapsed, "measured": self.measured, "last": self._last}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up the times of the run that is resumed."""
        self._before = state["elapsed"]
        self.measured = state["measured"]
        self._last = state["last"]
