"""Block Lanczos with full reorthogonalisation: Ritz pairs, their residuals, and quadrature."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.hessian.operator import SymmetricOperator, product_blocks


class Ritz(NamedTuple):
    """Ritz pairs of the subspace, ascending: the operator as seen from it."""

    values: Tensor
    """Shape ``(m,)``, float64."""
    coordinates: Tensor
    """Ritz vectors in the subspace's basis, one a column, shape ``(m, m)``."""
    residuals: Tensor
    """``norm(A y − θ y)``, shape ``(m,)``: an eigenvalue lies within this of each Ritz value."""
    weights: Tensor
    """Squared component of every start vector along every Ritz vector, ``(starts, m)``: the nodes'
    weights in the quadrature for ``xᵀ f(A) x``."""


class BlockKrylov:
    """An orthonormal basis ``V`` of ``span(X, AX, A²X, …)`` that grows block by block.

    ``A`` is the operator, restricted to the complement of some locked directions. Every new block
    is made orthogonal to the whole basis twice ("twice is enough": Parlett, The Symmetric
    Eigenvalue Problem, section 6.9), so that ``AV = VT + Q R Eᵀ`` holds to rounding, where ``Q`` is
    the next block, and no Ritz value is a ghost.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        start: Tensor,
        max_size: int,
        locked: Tensor | None = None,
    ) -> None:
        """Start the basis.

        Args:
            operator: the matrix ``A``.
            start: ``X``, shape ``(dim, b)``.
            max_size: largest number of basis vectors.
            locked: orthonormal columns that the basis avoids.
        """
        self._operator = operator
        self._locked = start[:, :0] if locked is None else locked
        space = operator.dim - self._locked.shape[1]
        self.max_size = max(0, min(max_size, space))
        self._basis = start.new_empty(operator.dim, self.max_size)
        self._t = torch.zeros(
            self.max_size, self.max_size, dtype=torch.float64, device=start.device
        )
        self.size = 0
        """Basis vectors whose product is known."""
        self.scale = 0.0
        """Norm of the largest product so far: what rounding errors are relative to."""
        self.num_products = 0
        self._block, self._start = self._orthonormal(start, relative_to=None)
        self._coupling = torch.zeros(0, 0)

    @property
    def exhausted(self) -> bool:
        """Whether the basis cannot grow: the space is invariant or ``max_size`` is reached."""
        return self.invariant or self.size + self._block.shape[1] > self.max_size

    @property
    def invariant(self) -> bool:
        """Whether the basis spans an invariant subspace."""
        return self._block.shape[1] == 0

    def extend(self) -> None:
        """Multiply the newest block and append what is new in the result."""
        b, old = self._block.shape[1], self.size
        block = self._block
        self._basis[:, old : old + b] = block
        self.size = old + b
        basis = self._basis[:, : self.size]
        products = torch.cat(
            [x for _, x in product_blocks(self._operator, b, lambda i, j: block[:, i:j])],
            dim=1,
        )
        self.num_products += b
        self.scale = max(self.scale, float(torch.linalg.vector_norm(products, dim=0).max()))
        projection = basis.T @ products
        self._t[: self.size, old : self.size] = projection.to(torch.float64)
        self._t[old : self.size, : self.size] = projection.T.to(torch.float64)
        self._block, self._coupling = self._orthonormal(products, relative_to=self.scale)

    def ritz(self) -> Ritz:
        """Return the Ritz pairs of the present subspace."""
        t = self._t[: self.size, : self.size]
        values, coordinates = torch.linalg.eigh((t + t.T) / 2)
        tail = coordinates[self.size - self._coupling.shape[1] :]
        residuals = torch.linalg.vector_norm(self._coupling.to(tail) @ tail, dim=0)
        floor = self.scale * (10 + self.size**0.5) * torch.finfo(self._basis.dtype).eps
        start = self._start.to(coordinates)
        weights = (start.T @ coordinates[: start.shape[0]]) ** 2
        return Ritz(values, coordinates, residuals.clamp_min(floor), weights)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Return the vectors with the given coordinates, shape ``(dim, n)``."""
        return self._basis[:, : self.size] @ coordinates.to(self._basis.dtype)

    def _orthonormal(self, block: Tensor, relative_to: float | None) -> tuple[Tensor, Tensor]:
        """Split ``block = (basis part) + Q R``; directions that are rounding error are dropped.

        ``Q`` is orthonormal, and orthogonal to basis and locked vectors.
        """
        basis = self._basis[:, : self.size]
        for _ in range(2):
            block = block - self._locked @ (self._locked.T @ block)
            block = block - basis @ (basis.T @ block)
        scale = relative_to
        left, singular, _ = torch.linalg.svd(block, full_matrices=False)
        if scale is None:
            scale = float(singular.max()) if len(singular) else 0.0
        eps = torch.finfo(block.dtype).eps
        keep = singular > 100 * eps * scale * self._operator.dim**0.5
        q = left[:, keep]
        for _ in range(
            2
        ):  # small directions have lost their orthogonality when they were scaled up
            q = q - self._locked @ (self._locked.T @ q)
            q = q - basis @ (basis.T @ q)
            q = torch.linalg.qr(q).Q
        return q, q.T @ block
