"""A progress bar for measurements that take longer than a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Seconds that a measurement may take before a bar appears.
PATIENCE = 3.0


class ProgressBar:
    """Counts the products of one measurement; shows nothing before :data:`PATIENCE` seconds.

    Args:
        description: what is being measured.
        now: seconds on a monotonic clock; exchanged in tests.
    """

    def __init__(self, description: str, now: Callable[[], float] = time.perf_counter) -> None:
        self._description = description
        self._now = now
        self._began = now()
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` products of the present stage are done."""
        if self._bar is None:
            if self._now() - self._began < PATIENCE:
                return
            from tqdm.auto import tqdm

            self._bar = tqdm(desc=self._description, unit="product", leave=False, position=1)
        if self._bar.total != total or done < self._bar.n:
            self._bar.reset(total)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress_bar(shown: bool, description: str) -> Iterator[ProgressBar | None]:
    """Return a bar that is removed on exit, or ``None`` where it is not wanted."""
    bar = ProgressBar(description) if shown else None
    try:
        yield bar
    finally:
        if bar is not None:
            bar.close()
