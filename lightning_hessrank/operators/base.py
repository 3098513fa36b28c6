"""What every estimator sees: a symmetric linear operator that only defines its product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.operators.memory import is_out_of_memory

Progress = Callable[[int, int], None]
"""Called between blocks of products with (products done, products in all); may raise to stop."""


class NonFiniteError(FloatingPointError):
    """The loss, its gradient or its Hessian is not finite; the message says which."""


class SymmetricOperator(ABC):
    """A real symmetric ``dim × dim`` matrix, known by its products with blocks of vectors."""

    dim: int
    """Number of rows and columns."""
    dtype: torch.dtype
    device: torch.device
    block_size: int = 64
    """How many columns a caller should hand to :meth:`matmat` at a time."""
    name: str = "matrix"
    """What it is, for messages."""

    @abstractmethod
    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with ``vectors`` of shape ``(dim, k)``; same shape, dtype and device."""

    def to_dense(self, progress: Progress | None = None) -> Tensor:
        """Return the matrix, shape ``(dim, dim)``, symmetrised, from ``dim`` products.

        Autograd returns each column to rounding, so the two triangles differ by some eps;
        eigenvalue solvers read one triangle only, and their mean halves that error.
        """
        dense = torch.empty(self.dim, self.dim, dtype=self.dtype, device=self.device)
        for block in product_blocks(self, self.dim, self._unit_columns, progress):
            dense[:, block.columns] = block.products
        return symmetrise_(dense)

    def spectral_matrix(self, progress: Progress | None = None) -> Tensor:
        """Return a symmetric matrix with the same nonzero eigenvalues, no larger than ``dim``.

        That is the matrix itself, unless an operator knows of a smaller one.
        """
        return self.to_dense(progress)

    def check_finite(self, products: Tensor) -> None:
        """Raise :class:`NonFiniteError` unless every entry of some products is finite.

        Not in :meth:`matmat`: several processes have to find out together, after reducing.
        """
        if not bool(torch.isfinite(products).all()):
            raise NonFiniteError(f"the {self.name} is not finite at a finite loss")

    def _unit_columns(self, start: int, stop: int) -> Tensor:
        unit = torch.zeros(self.dim, stop - start, dtype=self.dtype, device=self.device)
        unit[start:stop].fill_diagonal_(1.0)
        return unit


class ProductBlock(NamedTuple):
    """Some columns, and what the operator made of them."""

    columns: slice
    vectors: Tensor
    """Shape ``(dim, columns.stop - columns.start)``."""
    products: Tensor
    """Same shape."""


def product_blocks(
    operator: SymmetricOperator,
    count: int,
    columns: Callable[[int, int], Tensor],
    progress: Progress | None = None,
    start: int = 0,
) -> Iterator[ProductBlock]:
    """Multiply ``columns(start, count)`` block by block; the block shrinks where memory runs out.

    Args:
        operator: its ``block_size`` is halved, for good, each time memory runs out.
        count: number of the last column, plus one.
        columns: ``columns(start, stop)`` returns vectors of shape ``(dim, stop - start)``; may be
            asked for the same ones again.
        progress: called before the first block and after each.
        start: number of the first column.

    Raises:
        MemoryError: a single vector does not fit.
        NonFiniteError: a product is nan or inf.
    """
    if progress is not None:
        progress(start, count)
    while start < count:
        stop = min(start + operator.block_size, count)
        try:
            vectors = columns(start, stop)
            products = operator.matmat(vectors)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if stop - start == 1:
                raise MemoryError(
                    f"not even one Hessian-vector product of dimension {operator.dim:,} fits into "
                    f"the memory of {operator.device}; measure on fewer samples (max_samples, or a "
                    "smaller batch) or in several smaller batches"
                ) from error
            operator.block_size = (stop - start) // 2
            continue
        operator.check_finite(products)
        yield ProductBlock(slice(start, stop), vectors, products)
        start = stop
        if progress is not None:
            progress(start, count)


def symmetrise_(matrix: Tensor) -> Tensor:
    """Replace a square matrix, in place, by the mean of itself and its transpose."""
    size, tile = matrix.shape[0], 1024
    for i in range(0, size, tile):
        for j in range(0, i + tile, tile):
            rows, cols = slice(i, i + tile), slice(j, j + tile)
            mean = (matrix[rows, cols] + matrix[cols, rows].T).mul_(0.5)
            matrix[rows, cols] = mean
            matrix[cols, rows] = mean.T
    return matrix


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

    def to_dense(self, progress: Progress | None = None) -> Tensor:
        """Return the matrix itself."""
        return self.matrix


class ReducedOperator(SymmetricOperator):
    """The mean (or sum) of one operator over processes, each of which holds its own share.

    Every process must ask for the same products in the same order, and reach the same decisions:
    choose the method and its sizes on one process and broadcast them.
    """

    def __init__(self, operator: SymmetricOperator, reduce: Callable[[Tensor], Tensor]) -> None:
        """Wrap ``operator``; ``reduce`` combines a tensor with those of the other processes.

        ``trainer.strategy.reduce`` averages, as the mean loss over equally large batches asks.
        """
        self._operator = operator
        self._reduce = reduce
        self.dim = operator.dim
        self.dtype = operator.dtype
        self.device = operator.device
        self.block_size = operator.block_size
        self.name = operator.name

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with ``vectors`` of shape ``(dim, k)``, and reduce.

        A process that runs out of memory splits the block for itself: all reduce the same shape.
        """
        try:
            products = self._operator.matmat(vectors)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or vectors.shape[1] == 1:
                raise
            halves = vectors.split(-(-vectors.shape[1] // 2), dim=1)
            products = torch.cat([self._operator.matmat(x) for x in halves], dim=1)
        return self._reduce(products)

    def to_dense(self, progress: Progress | None = None) -> Tensor:
        """Return the reduced matrix; each share is built in the way that its operator knows."""
        return self._reduce(self._operator.to_dense(progress))
