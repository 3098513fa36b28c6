"""Random samples that stand for all inputs that a bound speaks of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_hessrank.network.batches import stored
from lightning_hessrank.tolerance import NumericalRank, machine_rtol, numerical_rank

#: Ratio of the last singular value counted to the first one not counted that makes a rank certain.
CLEAR_GAP = 1e4


def matrix_rank(matrix: Tensor) -> int:
    """Rank of a matrix, or an upper bound where rounding hides it.

    Singular values are counted down to the clear gap at machine precision: where they decay through
    machine precision without one, all count.
    """
    if not matrix.numel():
        return 0
    values = torch.linalg.svdvals(matrix)
    rank = numerical_rank(values, machine_rtol(max(matrix.shape), matrix.dtype))
    return rank.rank if is_clear(rank) else len(values)


def is_clear(rank: NumericalRank) -> bool:
    """Whether a gap at the cut makes a numerical rank certain."""
    return rank.gap is None or rank.gap >= CLEAR_GAP


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
        return matrix_rank(self._augmented)

    def sample(self, count: int, generator: torch.Generator, *, affine: bool) -> tuple[Tensor, ...]:
        """Draw ``count`` generic inputs from the span, well conditioned; affine ones if asked."""
        if self.data is None and self.given_rank is None:
            return unflatten(_gaussian(self.like[0], generator, count, self.features), self.like)
        if not affine:
            basis = self._basis
            return unflatten(
                _mixture(self.like[0], generator, count, len(basis)) @ basis, self.like
            )
        # With a one appended: every row gets the same, not too small, share of the constant, since
        # inputs that dwarf the constant would hide ranks in rounding.
        basis = self._affine_basis
        constant = basis[:, -1]
        share = float(constant.norm())
        along = constant / share
        mixture = _mixture(self.like[0], generator, count, len(basis))
        mixture = mixture - (mixture @ along)[:, None] * along + along
        return unflatten((mixture @ basis)[:, :-1] / share, self.like)

    @cached_property
    def _basis(self) -> Tensor:
        """Orthonormal basis of the inputs' span, shape ``(rank, features)``."""
        if self.data is None:
            own = torch.Generator().manual_seed(1)
            shape = (self.features, self.rank)
            return torch.linalg.qr(_gaussian(self.like[0], own, *shape)).Q.T
        return torch.linalg.svd(self.data, full_matrices=False).Vh[: self.rank]

    @cached_property
    def _affine_basis(self) -> Tensor:
        """The same with a constant one appended to every input."""
        if self.data is None:
            corner = torch.block_diag(self._basis, self.like[0].new_ones(1, 1))
            return corner
        return torch.linalg.svd(self._augmented, full_matrices=False).Vh[: self.affine_rank]

    @property
    def _augmented(self) -> Tensor:
        assert self.data is not None
        return torch.cat([self.data, self.data.new_ones(len(self.data), 1)], dim=1)

    def restrict(self, functionals: Tensor) -> Tensor:
        """Linear functionals of the inputs, one a row, as seen on the given data only."""
        return functionals if self.data is None else functionals @ self.data.T


def gaussian_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random entries where a tensor stores some: everywhere, or where those of a sparse one are."""
    if x.layout is torch.strided:
        return _gaussian(x, generator, *x.shape)
    random = x.detach().clone()
    values = stored(random)[-1]
    values.copy_(_gaussian(values, generator, *values.shape))
    return random


def _gaussian(like: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def _mixture(like: Tensor, generator: torch.Generator, count: int, rank: int) -> Tensor:
    """Random coefficients ``(count, rank)``: near orthogonal, so that ranks stay clear-cut."""
    mixture = _gaussian(like, generator, count, rank)
    if count > rank or not count:
        return mixture
    scales = 0.5 + torch.rand(count, 1, generator=generator, dtype=torch.float64).to(like)
    return scales * torch.linalg.qr(mixture.T).Q.T


def flatten(inputs: Sequence[Tensor]) -> Tensor:
    """All features of each sample in one row; of what has one feature (a scalar), that one."""
    return torch.cat([x.reshape(len(x), math.prod(x.shape[1:])) for x in inputs], dim=1)


def unflatten(rows: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inverse of :func:`flatten`, for any number of rows."""
    pieces = rows.split([x[0].numel() for x in like], dim=1)
    return tuple(
        piece.reshape(len(rows), *x.shape[1:]).to(x) for piece, x in zip(pieces, like, strict=True)
    )
