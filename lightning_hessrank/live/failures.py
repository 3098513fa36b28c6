"""What goes wrong while measuring: training goes on, and each thing is said once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from lightning_hessrank.live.processes import ProcessFailedError, UnsupportedStrategyError
from lightning_hessrank.live.step import UnusableStepError
from lightning_hessrank.live.trainer_view import ManualOptimizationError
from lightning_hessrank.live.verify import NoSecondDerivativeError, WrongProductError

#: Errors that the next measurement would meet again.
_FINAL = (
    UnsupportedStrategyError,
    ManualOptimizationError,
    UnusableStepError,
    WrongProductError,
    NoSecondDerivativeError,
)


class HessianRankWarning(UserWarning):
    """A measurement failed or means less than it seems; training went on."""


class Failures:
    """Turns errors into warnings, so that training goes on, unless told to raise.

    Args:
        on_error: ``"warn"`` or ``"raise"``.
    """

    def __init__(self, on_error: Literal["warn", "raise"]) -> None:
        self._on_error = on_error
        self._said: set[str] = set()
        self.silent = False
        """Whether another process speaks for this one."""
        self.count = 0
        """Failed measurements."""
        self.final = False
        """Whether trying again is pointless."""

    @contextmanager
    def handled(self, what: str) -> Iterator[None]:
        """Warn, once for each cause, that ``what`` did not happen.

        Interrupts (Ctrl-C) pass through.
        """
        try:
            yield
        except Exception as error:
            if self._on_error == "raise":
                raise
            self.count += 1
            self.final = self.final or _is_final(error)
            cause = str(error) or type(error).__name__
            again = "" if not self.final else " (it will not be tried again in this run)"
            self.warn_once(f"{what}: {cause}{again}", about=cause)

    def warn_once(self, message: str, *, about: str | None = None) -> None:
        """Say something that may recur, the first time only.

        Args:
            message: what to say.
            about: what makes two messages the same; ``None``: their text.
        """
        about = message if about is None else about
        if about not in self._said:
            self._said.add(about)
            self.warn(message)

    def summarise(self) -> None:
        """Say how often something failed, where it was more than the once that was said."""
        if self.count > 1 and not self.final:
            self.warn(f"{self.count} failures in this run")

    def warn(self, message: str) -> None:
        """Say something."""
        if not self.silent:
            warnings.warn(f"HessianRankMonitor: {message}", HessianRankWarning, stacklevel=2)


def _is_final(error: Exception) -> bool:
    if isinstance(error, ProcessFailedError):
        return any(kind.__name__ in error.kinds for kind in _FINAL)
    return isinstance(error, _FINAL)
