"""The rank of a loss Hessian without a Trainer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_hessrank.estimators import estimate_rank
from lightning_hessrank.hessian import LossCurvature, NonFiniteError
from lightning_hessrank.results import PARTS, Method, Part, RankEstimate
from lightning_hessrank.subject.step import model_step
from lightning_hessrank.subject.subject import Subject
from lightning_hessrank.tolerance import check_rtol, machine_rtol


def hessian_rank(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: Any,
    *,
    part: Part = "total",
    method: Literal["auto"] | Method = "auto",
    rtol: float | None = None,
    max_rank: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> RankEstimate:
    """Measure the numerical rank of the Hessian of a mean loss at the model's weights.

    The model itself is not touched: everything happens on a copy, in the mode (training or
    evaluation) that each of its modules has now.

    Args:
        model: ``model(inputs) -> outputs``.
        loss_fn: ``loss_fn(outputs, targets) -> scalar``, a mean over samples.
        data: one ``(inputs, targets)`` pair, or an iterable of pairs, which are weighted by their
            numbers of samples.
        part: ``"total"``, ``"outer"`` (outer-product Hessian = generalised Gauss–Newton) or
            ``"functional"`` (their difference, differentiated directly).
        method: ``"dense"``, ``"sketch"``, ``"lanczos"``, or ``"auto"``: by cost and memory.
        rtol: relative tolerance in [0, 1) of the count, times ``max|λ|``; ``None``: machine
            precision ``p * eps`` (dense, sketch) or 1e-3 (lanczos).
        max_rank: a known upper bound on the rank, which makes the sketch cheap. One that is too
            small is noticed and warned of; the rank is then measured without it.
        seed: of every random probe, and of randomness inside the model.
        dtype: floating type of the computation.

    Returns:
        The rank with its tolerance, gap, method and cost. Where the loss or the Hessian is not
        finite, ``rank`` is ``nan`` and a warning says where that came from.

    Raises:
        ValueError: an argument is out of range, the data are empty, the loss is not a scalar, or no
            parameter requires gradients.
        TypeError: an argument has the wrong type, ``data`` are not pairs, or the loss is not a
            tensor.
        UnresolvedError: sketch or lanczos cannot tell the count at this tolerance.
        MemoryError: what the method needs does not fit.
    """
    check_part(part)
    check_method(method)
    _check_arguments(model, loss_fn, max_rank, seed, dtype)
    if rtol is not None:
        check_rtol(rtol)
    subject = Subject(model, as_pairs(data), model_step(loss_fn), dtype=dtype, seed=seed)
    try:
        curvature = LossCurvature(subject.loss_function())
        return estimate_rank(
            curvature.operator(part),
            method=method,
            rtol=rtol,
            max_rank=max_rank,
            seed=seed,
            part=part,
        )
    except NonFiniteError as error:
        warnings.warn(f"rank is nan: {error}", RuntimeWarning, stacklevel=2)
        return nan_estimate(subject.num_parameters, part=part, rtol=rtol)
    finally:
        subject.release()


def _check_arguments(
    model: object, loss_fn: object, max_rank: object, seed: object, dtype: object
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn must be a function loss_fn(outputs, targets) -> scalar, got {loss_fn!r}"
        )
    if max_rank is not None and (isinstance(max_rank, bool) or not isinstance(max_rank, int)):
        raise TypeError(f"max_rank must be a whole number or None, got {max_rank!r}")
    if max_rank is not None and max_rank < 0:
        raise ValueError(f"max_rank must not be negative, got {max_rank}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating torch.dtype, got {dtype!r}")


def as_pairs(data: Any) -> list[tuple[Any, Any]]:
    """Return ``data``, one pair or an iterable of pairs, as a list of pairs.

    A tuple or list of two is one pair, unless both of its entries are themselves such pairs.
    """
    if _is_pair(data) and not all(map(_is_pair, data)):
        return [tuple(data)]
    if isinstance(data, (Tensor, str)) or not isinstance(data, Iterable):
        raise TypeError(
            "data must be an (inputs, targets) pair or an iterable of such pairs, got "
            f"{type(data).__name__}"
        )
    pairs = list(data)
    for pair in pairs:
        if not _is_pair(pair):
            raise TypeError(
                "data must be an (inputs, targets) pair or an iterable of such pairs, got an "
                f"iterable of {type(pair).__name__}"
            )
    if not pairs:
        raise ValueError("data has no batches; pass at least one (inputs, targets) pair")
    return [tuple(pair) for pair in pairs]


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def check_part(part: str) -> None:
    """Raise unless ``part`` names the Hessian or a part of it."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(map(repr, PARTS))}, got {part!r}")


def check_method(method: str) -> None:
    """Raise unless ``method`` names a way to measure."""
    if method not in ("auto", "dense", "sketch", "lanczos"):
        raise ValueError(
            f"method must be one of 'auto', 'dense', 'sketch', 'lanczos', got {method!r}"
        )


def nan_estimate(
    num_parameters: int,
    *,
    part: Part = "total",
    method: Literal["auto"] | Method = "dense",
    rtol: float | None = None,
) -> RankEstimate:
    """Return the estimate that stands for a measurement that was not finite."""
    return RankEstimate(
        rank=math.nan,
        std_error=0.0,
        rtol=machine_rtol(num_parameters) if rtol is None else rtol,
        tolerance=math.nan,
        gap=None,
        method="dense" if method == "auto" else method,
        num_parameters=num_parameters,
        num_products=0,
        seconds=0.0,
        part=part,
    )
