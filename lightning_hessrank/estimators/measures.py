"""Extreme eigenvalues, trace and Frobenius norm: what every estimate says beside its count."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from lightning_hessrank.spectrum import Spectrum


class Measures(TypedDict):
    """Fields of a :class:`~lightning_hessrank.results.RankEstimate`, which documents them."""

    largest: float
    smallest: float
    trace: float
    frobenius_norm: float
    standard_errors: dict[str, float]
    quadrature: Spectrum | None


def measures_of_spectrum(eigenvalues: Tensor) -> Measures:
    """From all eigenvalues, ``(dim,)``; those of the empty matrix are taken to be zero."""
    values = eigenvalues if len(eigenvalues) else eigenvalues.new_zeros(1)
    return {
        "largest": float(values.max()),
        "smallest": float(values.min()),
        "trace": float(values.sum()),
        "frobenius_norm": float(torch.linalg.vector_norm(values)),
        "standard_errors": {},
        "quadrature": None,
    }


def measures_of_quadrature(
    known: Tensor, nodes: Tensor, weights: Tensor, residuals: Tensor
) -> Measures:
    """From some eigenvalues, and a quadrature of the rest.

    A Gaussian probe ``x`` has ``E[xᵀ f(A) x] = tr f(A)``, and ``Σ_i w_i f(θ_i)`` is that of
    the subspace. The eigenvalues that are known are taken as they are, and add no variance.

    Args:
        known: eigenvalues that are exact.
        nodes: Ritz values of the rest, ``(m,)``.
        weights: theirs, for every probe, ``(probes, m)``.
        residuals: norms of theirs, ``(m,)``: what the extreme ones may be wrong by.
    """
    values, errors = torch.cat([known, nodes]), torch.cat([torch.zeros_like(known), residuals])
    top, bottom = int(values.argmax()), int(values.argmin())
    scale = float(values.abs().max()) or 1.0  # squares of very small numbers are zero
    trace, trace_error = _mean(known.sum(), weights @ nodes)
    square, square_error = _mean(((known / scale) ** 2).sum(), weights @ (nodes / scale) ** 2)
    norm = math.sqrt(square)
    return {
        "largest": float(values[top]),
        "smallest": float(values[bottom]),
        "trace": trace,
        "frobenius_norm": scale * norm,
        "standard_errors": {
            "largest": float(errors[top]),
            "smallest": float(errors[bottom]),
            "trace": trace_error,
            "frobenius_norm": scale * square_error / (2 * norm) if norm else 0.0,
        },
        "quadrature": Spectrum(*(x.cpu().double() for x in (known, nodes, weights, residuals))),
    }


def _mean(known: Tensor, per_probe: Tensor) -> tuple[float, float]:
    """What is known plus the mean over probes, and its standard error."""
    error = float(per_probe.std()) / math.sqrt(len(per_probe)) if len(per_probe) > 1 else math.inf
    return float(known + per_probe.mean()), error
