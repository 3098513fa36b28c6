"""Sums of Hessians over batches, and what their rank is: the arithmetic behind ``HessianRank``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hessrank.estimators.dense import spectrum_estimate, symmetric_eigenvalues
from lightning_hessrank.estimators.sketch import MIN_GAP, OVERSAMPLING
from lightning_hessrank.measure import hessian_matrix
from lightning_hessrank.results import NonFiniteError, Part, RankEstimate, nan_estimate
from lightning_hessrank.subject.step import model_step
from lightning_hessrank.subject.subject import Subject
from lightning_hessrank.tolerance import machine_rtol, numerical_rank


def hessian_sum(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any,
    *,
    part: Part = "total",
    sketch_width: int | None = None,
    verify: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, int]:
    """Return the Hessian of the loss *summed* over one batch, or a sketch of it, and the samples.

    Args:
        model: ``model(inputs) -> outputs``; left as it is.
        loss_fn: ``loss_fn(outputs, targets) -> scalar``, a mean over samples.
        inputs: samples in the first dimension.
        targets: of these samples.
        part: of the Hessian.
        sketch_width: number ``k`` of Gaussian probes; ``None``: the dense matrix.
        verify: compare a product with finite differences first.
        seed: of the probes and of randomness inside the model.
        dtype: of the computation.

    Returns:
        A symmetric ``(p, p)`` or ``(k, k)`` tensor, all ``nan`` (and a warning) where the loss or
        the Hessian is not finite; and the number of samples.

    Raises:
        WrongProductError: Hessian-vector products are not the derivative of the gradient.
        NoSecondDerivativeError: an operation has none.
    """
    subject = Subject(model, [(inputs, targets)], model_step(loss_fn), dtype=dtype, seed=seed)
    try:
        matrix = hessian_matrix(subject, part, sketch_width=sketch_width, verify=verify, seed=seed)
    except NonFiniteError as error:
        warnings.warn(f"HessianRank will be nan: {error}", RuntimeWarning, stacklevel=2)
        size = sketch_width or subject.num_parameters
        matrix = torch.full((size, size), torch.nan, dtype=dtype)
    finally:
        subject.release()
    return matrix.mul_(subject.num_samples), subject.num_samples


def rank_of_sum(
    curvature: Tensor,
    num_samples: int,
    *,
    part: Part = "total",
    rtol: float | None = None,
    num_parameters: int,
) -> RankEstimate:
    """Return the rank of a mean Hessian from the sum that :func:`hessian_sum` makes.

    Args:
        curvature: shape ``(p, p)``, or ``(k, k)`` with ``k < p`` for the core of a sketch.
        num_samples: that were summed over.
        part: of the Hessian, for the record.
        rtol: relative tolerance of the count; ``None``: ``p * eps`` of its dtype.
        num_parameters: ``p``.

    Returns:
        The rank. From a sketch its ``gap`` is that of the core, and ``tolerance`` (in units of the
        Hessian's eigenvalues, which a core does not keep) is ``nan``; so is the rank where the core
        does not tell it, with a warning.
    """
    start = time.perf_counter()
    width, is_dense = len(curvature), len(curvature) == num_parameters
    rtol = machine_rtol(num_parameters, curvature.dtype) if rtol is None else rtol
    unknown = nan_estimate(
        num_parameters, part=part, rtol=rtol, method="dense" if is_dense else "sketch"
    )
    if num_samples == 0 or not bool(torch.isfinite(curvature).all()):
        return unknown
    eigenvalues = symmetric_eigenvalues(curvature / num_samples)
    if is_dense:
        return spectrum_estimate(
            eigenvalues,
            rtol=rtol,
            part=part,
            num_products=width,
            seconds=time.perf_counter() - start,
        )
    rank = numerical_rank(eigenvalues, rtol)
    doubt = _doubt(rank.rank, rank.gap, width)
    if doubt:
        warnings.warn(f"HessianRank is nan: {doubt}", RuntimeWarning, stacklevel=2)
        return unknown
    return replace(
        unknown,
        rank=rank.rank,
        gap=rank.gap,
        num_products=width,
        seconds=time.perf_counter() - start,
    )


def _doubt(rank: int, gap: float | None, width: int) -> str | None:
    """Say why the core of a sketch does not tell the rank, or return ``None``."""
    if rank > width - OVERSAMPLING // 2:
        return (
            f"the sketch of {width} columns came out full, so the rank is at least {rank}; pass a "
            f"larger max_rank than {width - OVERSAMPLING}, or None for the dense state"
        )
    if gap is not None and gap < MIN_GAP:
        return (
            f"the spectrum of the sketch has no clear gap at the cut (a factor of {gap:.1f}), so "
            f"its count of {rank} need not be the Hessian's; pass max_rank=None for the dense state"
        )
    return None
