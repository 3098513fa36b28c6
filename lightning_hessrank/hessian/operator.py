"""What every estimator sees: a symmetric linear operator that only defines its product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from lightning_hessrank.hessian.memory import is_out_of_memory
from lightning_hessrank.hessian.rows import Rows
from lightning_hessrank.results import NonFiniteError

Progress = Callable[[int, int], None]
"""Called between blocks of products with (products done, products in all); may raise to stop."""


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

    @property
    def rows(self) -> Rows:
        """Which rows of a vector this process holds: a block has shape ``(rows.count, k)``."""
        return Rows(self.dim)

    @abstractmethod
    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with ``vectors`` of shape ``(dim, k)``; same shape, dtype and device."""

    def error(self, scale: float, size: int) -> float:
        """Return what products may be wrong by, as seen from a subspace: rounding, by default.

        Args:
            scale: norm of the largest product with a unit vector so far.
            size: dimension of the subspace.
        """
        return scale * (10 + size**0.5) * torch.finfo(self.dtype).eps

    def to_dense(self, progress: Progress | None = None) -> Tensor:
        """Return the matrix, shape ``(dim, dim)``, symmetrised, from ``dim`` products.

        Autograd returns each column to rounding, so the two triangles differ by some eps;
        eigenvalue solvers read one triangle only, and their mean halves that error.
        """
        dense = torch.empty(self.dim, self.dim, dtype=self.dtype, device=self.device)

        def unit(start: int, stop: int) -> Tensor:
            return unit_columns(self.dim, start, stop, dense)

        for columns, products in product_blocks(self, self.dim, unit, progress):
            dense[:, columns] = products
        return symmetrise_(dense)

    def dense_cost(self) -> float:
        """Return the time that :meth:`to_dense` takes, in products, about."""
        return self.dim / 2

    def smaller_matrix(
        self, than: int | None = None, progress: Progress | None = None
    ) -> Tensor | None:
        """Return a smaller symmetric matrix with the same nonzero eigenvalues, if one is known.

        Args:
            than: number of rows that it has to stay below; ``None``: :attr:`dim`.
            progress: called between blocks of its rows.
        """
        return None

    def check_finite(self, products: Tensor) -> None:
        """Raise :class:`NonFiniteError` unless every entry of some products is finite.

        Not in :meth:`matmat`: several processes have to find out together, after reducing.
        """
        if not bool(torch.isfinite(products).all()):
            raise NonFiniteError(f"the {self.name} is not finite at a finite loss")


Product = TypeVar("Product")


def product_blocks(
    operator: SymmetricOperator,
    count: int,
    columns: Callable[[int, int], Tensor],
    progress: Progress | None = None,
    start: int = 0,
) -> Iterator[tuple[slice, Tensor]]:
    """Multiply ``columns(start, count)`` block by block; the block shrinks where memory runs out.

    Args:
        operator: its ``block_size`` is halved, for good, each time memory runs out.
        count: number of the last column, plus one.
        columns: ``columns(start, stop)`` returns vectors of shape ``(dim, stop - start)``; may be
            asked for the same ones again.
        progress: called before the first block and after each.
        start: number of the first column.

    Yields:
        The numbers of the columns, and the products, of the same shape.

    Raises:
        MemoryError: a single vector does not fit.
        NonFiniteError: a product is nan or inf.
    """
    for numbers, products in blocks(
        operator, count, columns, operator.matmat, progress=progress, start=start
    ):
        operator.check_finite(products)
        yield numbers, products


def blocks(
    operator: SymmetricOperator,
    count: int,
    columns: Callable[[int, int], Tensor],
    multiply: Callable[[Tensor], Product],
    *,
    progress: Progress | None = None,
    start: int = 0,
) -> Iterator[tuple[slice, Product]]:
    """Do the same with any ``multiply`` instead of the operator's; nothing is checked."""
    if progress is not None:
        progress(start, count)
    while start < count:
        stop = min(start + operator.block_size, count)
        try:
            products = multiply(columns(start, stop))
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
        yield slice(start, stop), products
        start = stop
        if progress is not None:
            progress(start, count)


def multiply_in_blocks(operator: SymmetricOperator, vectors: Tensor) -> Tensor:
    """Multiply with vectors at hand, in smaller blocks where memory runs out."""

    def columns(start: int, stop: int) -> Tensor:
        return vectors[:, start:stop]

    products = blocks(operator, vectors.shape[1], columns, operator.matmat)
    return torch.cat([part for _, part in products], dim=1)


def unit_columns(size: int, start: int, stop: int, like: Tensor) -> Tensor:
    """Return columns ``start:stop`` of the unit matrix, of ``like``'s dtype and device."""
    unit = torch.zeros(size, stop - start, dtype=like.dtype, device=like.device)
    unit[start:stop].fill_diagonal_(1.0)
    return unit


def symmetrise_(matrix: Tensor) -> Tensor:
    """Replace a square matrix, in place, by the mean of itself and its transpose."""
    size, tile = matrix.shape[0], 256
    for i in range(0, size, tile):
        for j in range(0, i + tile, tile):
            rows, cols = slice(i, i + tile), slice(j, j + tile)
            mean = (matrix[rows, cols] + matrix[cols, rows].T).mul_(0.5)
            matrix[rows, cols] = mean
            matrix[cols, rows] = mean.T
    return matrix


def agrees(found: Tensor, products: Tensor, *, size: int | None = None) -> bool:
    """Whether a shortcut's products with Gaussian vectors are the true ones, to machine precision.

    For a matrix ``E`` and a Gaussian ``v``, ``‖Ev‖`` is about ``‖E‖_F``. With ``‖H‖_F / √p`` for
    ``max|λ|``, which is at least that, the error has to stay below the cut ``p · eps · max|λ|``
    under which a rank at machine precision sees nothing. (Small matrices get a little more:
    45 eps of ``‖H‖_F``. What is right was seen to differ by up to 14.)

    Args:
        found: products of the matrix that the shortcut made, shape ``(p, k)``.
        products: of the true matrix with the same vectors.
        size: ``p``, where the matrix is a smaller one with the same eigenvalues.
    """
    rtol = max((size or len(found)) ** 0.5, 45) * torch.finfo(found.dtype).eps
    error = torch.linalg.vector_norm(found - products)
    return bool(error <= rtol * torch.linalg.vector_norm(products))


def random_vectors(size: int, like: Tensor) -> Tensor:
    """Return two Gaussian vectors, shape ``(size, 2)``, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 2, generator=generator, dtype=torch.float64).to(like)


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

    Every process must ask for the same products in the same order. What a process decides by its
    own clock or free memory has to be decided once and broadcast: the method, and the
    ``memory_limit`` of the estimators. Blocks may differ: each process splits them for itself.
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
        self.name = operator.name

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with ``vectors`` of shape ``(dim, k)``, and reduce."""
        return self._reduce(multiply_in_blocks(self._operator, vectors))

    def to_dense(self, progress: Progress | None = None) -> Tensor:
        """Return the reduced matrix; each share is built in the way that its operator knows."""
        return self._reduce(self._operator.to_dense(progress))

    def check_finite(self, products: Tensor) -> None:
        """Raise unless the reduced products are finite."""
        self._operator.check_finite(products)
