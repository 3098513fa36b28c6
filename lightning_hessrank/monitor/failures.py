"""What goes wrong while measuring: training goes on, and each thing is said once."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from lightning_hessrank.hessian.verify import NoSecondDerivativeError, WrongProductError
from lightning_hessrank.processes import ProcessFailedError, UnsupportedStrategyError
from lightning_hessrank.subject.comparison import EvaluationModeError
from lightning_hessrank.subject.step import UnusableStepError
from lightning_hessrank.subject.trainer_view import ManualOptimizationError
from lightning_hessrank.text import in_short

#: Errors that the next measurement would meet again.
_FINAL = (
    UnsupportedStrategyError,
    ManualOptimizationError,
    UnusableStepError,
    EvaluationModeError,
    WrongProductError,
    NoSecondDerivativeError,
)
#: Builtin errors that this package raises with a message of its own.
_EXPLAINED = (ValueError, TypeError, MemoryError)


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
        self._unreported: list[str] = []
        self._tried: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        """How many of the things that are tried again and again failed."""
        self.final = False
        """Whether trying again is pointless."""

    @contextmanager
    def handled(self, what: str, *, among: str | None = None) -> Iterator[None]:
        """Warn, once for each cause, that ``what`` did not happen.

        Interrupts (Ctrl-C) pass through.

        Args:
            what: did not happen.
            among: plural of the things that are tried again and again, this being one of them.
        """
        if among is not None:
            self._tried[among] += 1
        try:
            yield
        except Exception as error:
            if self._on_error == "raise":
                raise
            if among is not None:
                self.failed[among] += 1
            self.final = self.final or _is_final(error)
            cause = cause_of(error)
            hint = "" if is_ours(error) else " (on_error='raise' shows the traceback)"
            again = "" if not self.final else " (it will not be tried again in this run)"
            self.warn_once(f"{what}: {cause}{hint}{again}", about=cause)

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
        for things, failed in self.failed.items():
            if failed > 1 and not self.final:
                self.warn(
                    f"{failed} of {self._tried[things]} {things} failed; the reason was given above"
                )

    def report(self) -> tuple[str, ...]:
        """Return what was said since this was last asked for."""
        said, self._unreported = tuple(self._unreported), []
        return said

    def warn(self, message: str) -> None:
        """Say something."""
        self._unreported.append(message)
        if not self.silent:
            _warn_at_users_line(f"HessianRankMonitor: {message}")


#: Packages whose lines say nothing to whoever calls `fit`.
_INNER = {
    __name__.partition(".")[0],
    *("lightning", "pytorch_lightning", "lightning_fabric", "torch", "contextlib"),
}


def _warn_at_users_line(message: str) -> None:
    """Warn as of the line of the user's code that runs now, as a rule that of ``trainer.fit``."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _package(frame) in _INNER:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        HessianRankWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def cause_of(error: Exception) -> str:
    """Say what went wrong: the message of an error of this package, or any other in short."""
    if is_ours(error):
        return str(error)
    return in_short(error)


def is_ours(error: Exception) -> bool:
    """Whether the message was written in this package, so that it explains itself."""
    package = __name__.partition(".")[0]
    if type(error).__module__.partition(".")[0] == package:
        return True
    if not (isinstance(error, _EXPLAINED) and str(error)):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").partition(".")[0] == package


def _is_final(error: Exception) -> bool:
    if isinstance(error, ProcessFailedError):
        return any(kind.__name__ in error.kinds for kind in _FINAL)
    return isinstance(error, _FINAL)
