"""What every estimator sees: a symmetric linear operator that only defines its product."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class SymmetricOperator(ABC):
    """A real symmetric ``dim × dim`` matrix, known by its products with blocks of vectors."""

    dim: int
    """Number of rows and columns."""
    dtype: torch.dtype
    device: torch.device
    block_size: int = 64
    """How many columns a caller should hand to :meth:`matmat` at a time."""

    @abstractmethod
    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with ``vectors`` of shape ``(dim, k)``; same shape, dtype and device."""

    def to_dense(self) -> Tensor:
        """Return the matrix, shape ``(dim, dim)``, symmetrised, from ``dim`` products.

        Autograd returns each column to rounding, so the two triangles differ by some eps;
        eigenvalue solvers read one triangle only, and their mean halves that error.
        """
        dense = torch.empty(self.dim, self.dim, dtype=self.dtype, device=self.device)
        for start in range(0, self.dim, self.block_size):
            stop = min(start + self.block_size, self.dim)
            unit = torch.zeros(self.dim, stop - start, dtype=self.dtype, device=self.device)
            unit[start:stop].fill_diagonal_(1.0)
            dense[:, start:stop] = self.matmat(unit)
        return dense.add_(dense.T.clone()).mul_(0.5)


class DenseOperator(SymmetricOperator):
    """A symmetric matrix that is at hand: for tests, and for reuse of one that was built."""

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"a symmetric matrix is square, got shape {tuple(matrix.shape)}")
        self.matrix = matrix
        self.dim = matrix.shape[0]
        self.dtype = matrix.dtype
        self.device = matrix.device

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with ``vectors`` of shape ``(dim, k)``."""
        return self.matrix @ vectors

    def to_dense(self) -> Tensor:
        """Return the matrix itself."""
        return self.matrix
