"""Random samples that stand for all inputs that a bound speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_hessrank.tolerance import machine_rtol, numerical_rank


def matrix_rank(matrix: Tensor) -> int:
    """Numerical rank of a matrix at machine precision."""
    if not matrix.numel():
        return 0
    values = torch.linalg.svdvals(matrix)
    return numerical_rank(values, machine_rtol(max(matrix.shape), matrix.dtype)).rank


@dataclass(frozen=True, eq=False)
class InputSpan:
    """The span of a network's inputs: any, of a known rank, or that of given data.

    The functional Hessian of a network that is affine in its input depends on data ``x_n`` and
    residuals ``δ_n`` through ``Ω = Σ δ_n (x_n, 1)ᵀ`` only, and every ``Ω`` of rank ``s`` is a sum
    over ``s`` samples from the same (affine) span. So generic samples from it reach the largest
    rank that any data in the span can have.
    """

    like: tuple[Tensor, ...]
    """Inputs of the network: shapes (with any number of samples), dtype and device."""
    data: Tensor | None = None
    """Given data, shape ``(num_samples, features)``: all inputs, flattened side by side."""
    given_rank: int | None = None
    """A known rank of the uncentred input covariance."""

    @property
    def features(self) -> int:
        """Number of features of one sample."""
        return sum(x[0].numel() for x in self.like)

    @property
    def num_samples(self) -> int | None:
        """Number of samples of the data, where they are given."""
        return None if self.data is None else len(self.data)

    @cached_property
    def rank(self) -> int:
        """Rank ``r`` of the inputs."""
        if self.data is not None:
            return matrix_rank(self.data)
        return self.features if self.given_rank is None else min(self.given_rank, self.features)

    @cached_property
    def affine_rank(self) -> int:
        """Rank of the inputs with a column of ones appended, for networks with constants."""
        if self.data is None:
            return self.rank + 1
        return matrix_rank(torch.cat([self.data, self.data.new_ones(len(self.data), 1)], dim=1))

    def sample(self, count: int, generator: torch.Generator, *, affine: bool) -> tuple[Tensor, ...]:
        """Draw ``count`` generic inputs from the span; affine combinations of given data."""

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.like[0])

        if self.data is not None:
            number = len(self.data)
            mixture = draw(count, number) / number**0.5
            if affine:
                mixture = mixture - mixture.mean(1, keepdim=True) + 1 / number
            flat = mixture @ self.data
        elif self.given_rank is not None:
            basis = torch.Generator().manual_seed(1)
            directions = torch.randn(
                self.rank, self.features, generator=basis, dtype=torch.float64
            ).to(self.like[0])
            flat = draw(count, self.rank) @ directions / max(1, self.rank) ** 0.5
        else:
            flat = draw(count, self.features)
        return unflatten(flat, self.like)


def flatten(inputs: Sequence[Tensor]) -> Tensor:
    """All features of each sample in one row."""
    return torch.cat([x.flatten(1) for x in inputs], dim=1)


def unflatten(rows: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inverse of :func:`flatten`, for any number of rows."""
    pieces = rows.split([x[0].numel() for x in like], dim=1)
    return tuple(
        piece.reshape(len(rows), *x.shape[1:]).to(x) for piece, x in zip(pieces, like, strict=True)
    )
