"""Whether evaluation mode computes the function that training minimises."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_hessrank.network.modes import OrderedMode, Place
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.subject import Subject
from lightning_hessrank.text import in_short

#: Relative difference of two losses from which on they are two functions' losses.
_SAME = 1e-6
#: Names of modules of other packages that drop something in training (``DropPath``, …).
_DROPS = re.compile("drop|stochasticdepth", re.IGNORECASE)


class EvaluationModeError(RuntimeError):
    """The step runs in training mode only."""


class _Switch(NamedTuple):
    """The argument of a function that says whether to draw."""

    name: str
    place: int
    off: Any


class WithoutNoise(OrderedMode):
    """While active, functions whose training mode is dropout or batch norm run as in evaluation."""

    place: ClassVar[Place] = Place.OUTPUT

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func`` in evaluation mode, if it has one."""
        switch = _NOISY.get(func)
        if switch is None or (func is F.batch_norm and not _has_statistics(args, kwargs)):
            return func(*args, **kwargs)
        if len(args) <= switch.place:
            return func(*args, **{**kwargs, switch.name: switch.off})
        return func(*args[: switch.place], switch.off, *args[switch.place + 1 :], **kwargs)


def _has_statistics(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return (args[1] if len(args) > 1 else kwargs.get("running_mean")) is not None


_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
_ALPHA_DROPOUTS = (F.alpha_dropout, F.feature_alpha_dropout)
_NOISY: dict[Callable[..., Any], _Switch] = {
    **dict.fromkeys((*_DROPOUTS, *_ALPHA_DROPOUTS), _Switch("training", 2, False)),
    torch.dropout: _Switch("train", 2, False),
    F.rrelu: _Switch("training", 3, False),
    F.batch_norm: _Switch("training", 5, False),
    F.scaled_dot_product_attention: _Switch("dropout_p", 4, 0.0),
}


def losses_in_both_modes(subject: Subject) -> tuple[float, float]:
    """Return the loss as it is measured and as training computes it, dropout and batch norm aside.

    Both with the same draws. A mean over this process's reference data.

    Raises:
        EvaluationModeError: the step runs in training mode only.
        Exception: whatever the step raises in both.
    """
    with undisturbed():
        try:
            measured = _loss(subject, lambda shadow: None)
        except Exception as error:
            try:
                _loss(subject, lambda shadow: _as_in_training(subject))
            except Exception:
                raise error from None
            raise EvaluationModeError(
                "the step runs in training mode, but not in evaluation mode, in which it is "
                f"measured ({in_short(error)}); pass module_mode='train' to the "
                "monitor"
            ) from error
        try:
            return measured, _loss(subject, lambda shadow: _as_in_training(subject))
        except Exception:  # of a mixture of modes that the module was not written for
            return measured, measured


def differ(first: float, second: float) -> bool:
    """Whether two losses are not the same but for rounding."""
    if not math.isfinite(first) or not math.isfinite(second):
        return False  # which is said elsewhere
    return abs(first - second) > _SAME * max(abs(first), abs(second))


def _loss(subject: Subject, prepare: Callable[[nn.Module], None]) -> float:
    def run(shadow: nn.Module, batch: Any) -> float:
        prepare(shadow)
        with WithoutNoise():
            return float(subject.step(shadow, batch).loss.detach())

    sizes = zip(subject.batches, subject.sizes, strict=True)
    total = sum(n * subject.run(lambda shadow, b=b: run(shadow, b)) for b, n in sizes)  # type: ignore[misc]
    return total / subject.num_samples


def _as_in_training(subject: Subject) -> None:
    """Put every part in the mode that training has it in, unless that means dropout or statistics.

    PyTorch's own modules differ in nothing else.
    """
    for part, training in subject.modes.items():
        kind = type(part)
        quiet = isinstance(part, _NormBase) or _DROPS.search(kind.__name__)
        part.training = training and not quiet and not kind.__module__.startswith("torch.")
