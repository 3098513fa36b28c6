"""Work that is given up when it takes too long, wherever in it the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning_hessrank.network.modes import OrderedMode, Place


class OutOfTimeError(Exception):
    """Some work takes longer than it may."""


class Within(OrderedMode):
    """Raise :class:`OutOfTimeError` at the first call of PyTorch after some seconds.

    One look at the clock for each call, whoever makes it: no loop has to know of a deadline.

    Args:
        seconds: wall time from now; ``None``: no limit.
    """

    place = Place.PATIENCE

    def __init__(self, seconds: float | None) -> None:
        super().__init__()
        self._deadline = float("inf") if seconds is None else time.perf_counter() + seconds

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, if there is time."""
        if time.perf_counter() > self._deadline:
            raise OutOfTimeError
        return func(*args, **kwargs)
