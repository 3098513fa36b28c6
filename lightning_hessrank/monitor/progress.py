"""The progress bar of a measurement, in the display that the run shows already, if it shows one.

Two displays that do not know of each other overwrite each other's lines. So where the Trainer's bar
is Rich's the measurement is a task of the same live display; where it is tqdm's, a tqdm bar below.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

#: Seconds that a measurement may take before a bar appears.
PATIENCE = 3.0
#: Seconds between two drawings of a Rich display.
_INTERVAL = 0.1


class Bar(Protocol):
    """What counts the products of a measurement on the screen."""

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done."""

    def close(self) -> None:
        """Take it off the screen."""


#: Makes a bar with a description. Bars are made late: most measurements need none.
MakeBar = Callable[[str], Bar]


class RichBar:
    """A task of a live display that someone else started.

    Args:
        display: the display.
        description: what is being measured.
    """

    def __init__(self, display: Progress, description: str) -> None:
        self._display = display
        self._task = display.add_task(description, total=1)
        self._drawn = -_INTERVAL

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done."""
        now = self._display.get_time()
        due = now - self._drawn >= _INTERVAL  # Lightning's display draws nothing by itself
        self._drawn = now if due else self._drawn
        self._display.update(self._task, completed=done, total=total, refresh=due)

    def close(self) -> None:
        """Hide the task; Lightning finds its own by their places, so that none must be removed."""
        self._display.update(self._task, visible=False, refresh=True)


class TqdmBar:
    """A bar of tqdm's, below those that are there.

    Args:
        description: what is being measured.
    """

    def __init__(self, description: str) -> None:
        from tqdm.auto import tqdm

        self._bar: Any = tqdm(desc=description, unit="product", leave=False, dynamic_ncols=True)

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done."""
        if self._bar.total != total or done < self._bar.n:
            self._bar.reset(total)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def trainer_bar(trainer: Any) -> MakeBar | None:
    """Return how to show a bar beside the Trainer's own; ``None`` where it shows none.

    Bars are told by the names of their classes, since Lightning has two namespaces.
    """
    bar = getattr(trainer, "progress_bar_callback", None)
    if bar is None or not trainer.is_global_zero or not getattr(bar, "is_enabled", False):
        return None
    kinds = {base.__name__ for base in type(bar).__mro__}
    if "RichProgressBar" in kinds:
        return None if bar.progress is None else display_bar(bar.progress)
    return TqdmBar if "TQDMProgressBar" in kinds and sys.stderr.isatty() else None


def display_bar(display: Progress) -> MakeBar | None:
    """Return how to show a bar in a live display; ``None`` where nobody would see it."""
    console = display.console
    seen = display.live.is_started and (console.is_terminal or console.is_jupyter)
    return partial(RichBar, display) if seen else None


class ProgressBar:
    """Counts the products of one measurement; shows nothing before :data:`PATIENCE` seconds.

    Args:
        make_bar: how to show a bar.
        description: what is being measured.
        now: seconds on a monotonic clock; exchanged in tests.
    """

    def __init__(
        self,
        make_bar: MakeBar,
        description: str,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._make = partial(make_bar, description)
        self._now = now
        self._began = now()
        self._bar: Bar | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` products of the present stage are done."""
        if self._bar is None:
            if self._now() - self._began < PATIENCE:
                return
            self._bar = self._make()
        self._bar.show(done, total)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress_bar(make_bar: MakeBar | None, description: str) -> Iterator[ProgressBar | None]:
    """Return a bar that is removed on exit, or ``None`` where none is to be shown."""
    if make_bar is None:
        yield None
        return
    bar = ProgressBar(make_bar, description)
    try:
        yield bar
    finally:
        bar.close()
