"""The one definition of numerical rank that estimators and bounds share."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # importing results, and whatever draws them, must not load torch
    import torch
    from torch import Tensor

#: Spectral gap from which on a rank passes for clear-cut, enough to contradict a bound.
CLEAR_GAP = 1e3
#: Relative tolerances at which every measurement counts eigenvalues.
COUNT_TOLERANCES: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


class NumericalRank(NamedTuple):
    """How many values lie beyond a relative cut-off, and how clear-cut that is."""

    rank: int
    """Number of values with ``abs(value) > tolerance``."""
    rtol: float
    """Relative cut-off."""
    tolerance: float
    """Absolute cut-off ``rtol * max(abs(values))``; 0.0 where all values are zero."""
    gap: float | None
    """``abs(λ_r) / abs(λ_{r+1})`` of the values sorted by size; ``inf`` at full rank or where
    everything below the cut is exactly zero; ``None`` at rank 0, where there is no ``λ_r``."""


def machine_rtol(size: int, dtype: torch.dtype | None = None) -> float:
    """Relative cut-off ``size * eps`` below which a computed eigenvalue may be rounding error.

    A symmetric eigenvalue solver is backward stable: each eigenvalue of a ``size × size`` matrix is
    wrong by at most a modest multiple of ``eps * norm(A)``; ``size * eps`` is the usual choice
    (LAPACK Users' Guide section 4.7; the default of ``torch.linalg.matrix_rank``).

    Args:
        size: of the matrix.
        dtype: in which it was computed; ``None``: float64.
    """
    if dtype is None:
        return size * sys.float_info.epsilon
    import torch

    return size * torch.finfo(dtype).eps


def numerical_rank(values: Tensor, rtol: float | None = None) -> NumericalRank:
    """Count the eigenvalues or singular values beyond ``rtol * max(abs(values))``.

    Args:
        values: real floating tensor of shape ``(n,)``, in any order. ``n = 0`` has rank 0, full.
        rtol: relative cut-off in ``[0, 1)``; ``None``: :func:`machine_rtol` of ``n`` and the dtype.

    Raises:
        ValueError: ``values`` is not a vector, is not finite, or ``rtol`` is outside ``[0, 1)``.
    """
    if values.ndim != 1:
        raise ValueError(
            f"numerical_rank needs a vector of values, got shape {tuple(values.shape)}"
        )
    rtol = machine_rtol(len(values), values.dtype) if rtol is None else check_rtol(rtol)
    if not bool(values.isfinite().all()):
        raise ValueError("numerical_rank needs finite values, got nan or inf among them")
    size = values.abs().sort(descending=True).values
    tolerance = rtol * float(size[0]) if len(size) else 0.0
    rank = int((size > tolerance).sum())
    if rank == len(size):
        gap: float | None = math.inf
    elif rank == 0:
        gap = None
    else:
        below = float(size[rank])
        gap = float(size[rank - 1]) / below if below > 0 else math.inf
    return NumericalRank(rank, rtol, tolerance, gap)


def check_rtol(rtol: float) -> float:
    """Return ``rtol`` as a float, or raise if it cannot be a relative tolerance."""
    if not (isinstance(rtol, (int, float)) and 0 <= rtol < 1):
        raise ValueError(
            f"rtol must be a number in [0, 1) (relative to the largest |eigenvalue|), got {rtol!r}"
        )
    return float(rtol)
