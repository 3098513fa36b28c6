"""Smooth companions of the rank: what is said of a spectrum where there is no gap to count at.

With ``q_i = |λ_i| / Σ|λ|``:

* effective dimension ``Σ |λ| / (|λ| + α)`` (MacKay 1992; Maddox et al., arXiv 2003.02139):
  parameters that the data determine at prior precision, or weight decay, ``α``;
* entropy rank ``exp(-Σ q log q)`` (Roy and Vetterli 2007), which needs no parameter;
* participation ratio ``(Σ|λ|)² / Σλ²``;
* stable rank ``Σλ² / max|λ|²``.

From all eigenvalues they are exact. From a Lanczos quadrature they are means over probes, with
jackknife standard errors; a measure is refused where the nodes do not tell it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # results, and whatever draws them, must not load torch
    from torch import Tensor

#: Share of a sum that may hang on where the nodes' eigenvalues really are.
MAX_UNSURE = 0.25


class Measured(float):
    """A number with its standard error; 0.0 where it is exact."""

    std_error: float

    def __new__(cls, value: float, std_error: float = 0.0) -> Measured:
        """Remember the standard error."""
        self = super().__new__(cls, value)
        self.std_error = std_error
        return self


def _square(size: Tensor) -> Tensor:
    return size.square()


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues that are known, and a quadrature of the others.

    ``tr f(A) ≈ Σ f(known) + Σ_i weights[b, i] f(nodes[i])`` for every probe ``b``.
    """

    known: Tensor
    """float64, on the CPU, as all here."""
    nodes: Tensor
    weights: Tensor
    """Shape ``(probes, nodes)``."""
    residuals: Tensor
    """Of the nodes: an eigenvalue lies within so much of each."""

    @classmethod
    def of(cls, eigenvalues: Tensor) -> Spectrum:
        """All eigenvalues are known."""
        none = eigenvalues.new_zeros(0)
        return cls(eigenvalues, none, eigenvalues.new_zeros(1, 0), none)

    def effective_dimension(self, alpha: float) -> Measured:
        """``Σ |λ| / (|λ| + α)``.

        Raises:
            ValueError: ``alpha`` is not positive, or the quadrature cannot tell.
        """
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        share = self._unsure(lambda size: size / (size + alpha))
        if share > MAX_UNSURE:
            raise ValueError(
                f"the quadrature cannot tell the effective dimension at alpha={alpha:.3g}: "
                f"{share:.0%} of it hangs on eigenvalues that have not converged; pass a larger "
                "alpha, or use method='dense'"
            )
        return self._mean([lambda size: size / (size + alpha)], lambda total: total)

    def entropy_rank(self) -> Measured:
        """``exp(-Σ q log q)``; 0 for the zero matrix."""
        return self._mean(
            [lambda size: size, lambda size: size.xlogy(size)],
            lambda total, log: total * math.exp(-log / total) if total > 0 else 0.0,
        )

    def participation_ratio(self) -> Measured:
        """``(Σ|λ|)² / Σλ²``; 0 for the zero matrix."""
        return self._mean(
            [lambda size: size, _square],
            lambda total, square: total**2 / square if square > 0 else 0.0,
        )

    def stable_rank(self) -> Measured:
        """``Σλ² / max|λ|²``; 0 for the zero matrix."""
        return self._mean([_square], lambda square: square if self._scale else 0.0)

    def count(self, threshold: float) -> Measured:
        """Number of ``|λ|`` beyond a threshold.

        Raises:
            ValueError: the quadrature cannot tell.
        """
        share = self._unsure(lambda size: (size > threshold).to(size))
        if share > MAX_UNSURE:
            raise ValueError(
                f"the quadrature cannot tell how many eigenvalues lie beyond {threshold:.3g}: "
                f"{share:.0%} of them have not converged; pass a larger threshold, or use "
                "method='dense'"
            )
        return self._mean([lambda size: (size > threshold).to(size)], lambda total: total)

    @property
    def _scale(self) -> float:
        return max((float(x.abs().max()) for x in (self.known, self.nodes) if len(x)), default=0.0)

    def _mean(
        self, terms: list[Callable[[Tensor], Tensor]], combine: Callable[..., float]
    ) -> Measured:
        """A function of traces, with the jackknife's standard error over probes."""
        scale = (self._scale or 1.0) if len(terms) > 1 or terms[0] is _square else 1.0
        known = [float(f(self.known.abs() / scale).sum()) for f in terms]
        sums = [self.weights @ f(self.nodes.abs() / scale) for f in terms]
        value = combine(*(k + float(s.mean()) for k, s in zip(known, sums, strict=True)))
        probes = len(self.weights)
        if not len(self.nodes):
            return Measured(value)
        if probes < 2:
            return Measured(value, math.inf)
        without = [((s.sum() - s) / (probes - 1)).tolist() for s in sums]
        left = [
            combine(*(k + s for k, s in zip(known, column, strict=True)))
            for column in zip(*without, strict=True)
        ]
        middle = sum(left) / probes
        variance = (probes - 1) / probes * sum((x - middle) ** 2 for x in left)
        return Measured(value, math.sqrt(variance))

    def _unsure(self, f: Callable[[Tensor], Tensor]) -> float:
        """Share of ``tr f`` that hangs on where within their residuals the eigenvalues are."""
        sizes, mass = self.nodes.abs(), self.weights.mean(0)
        low, high = f((sizes - self.residuals).clamp(min=0)), f(sizes + self.residuals)
        whole = float(f(self.known.abs()).sum() + (mass * f(sizes)).sum())
        return float((mass * (high - low)).sum()) / 2 / whole if whole > 0 else 0.0
