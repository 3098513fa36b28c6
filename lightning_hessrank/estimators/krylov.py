"""Block Lanczos with full reorthogonalisation: Ritz pairs, their residuals, and quadrature."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.estimators.basis import Basis
from lightning_hessrank.hessian.operator import SymmetricOperator, product_blocks
from lightning_hessrank.threads import threads_for

EPS = torch.finfo(torch.float64).eps
#: Component of a unit vector along a basis up to which one pass makes it orthogonal to rounding.
ALONG = 0.1


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
    is made orthogonal to the whole basis, so that ``AV = VT + Q R Eᵀ`` holds to rounding, where
    ``Q`` is the next block, and no Ritz value is a ghost. In exact arithmetic a product has
    components along the last two blocks only. These are taken out first, twice; what is left is
    scaled to orthonormal columns, and has next to nothing along the rest of the basis, so that one
    pass through memory suffices; where it has more, the pass is repeated ("twice is enough":
    Parlett, The Symmetric Eigenvalue Problem, section 6.9).

    The basis is float64 whatever the operator is: in float32, directions below 3e-3 of the largest
    eigenvalue would pass for rounding errors, and the space for invariant. The rounding errors of
    the products then are a perturbation of the operator, which the residuals account for.
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
            start: ``X``, shape ``(dim, b)``, or the rows of it that this process holds.
            max_size: largest number of basis vectors.
            locked: orthonormal columns that the basis avoids, float64.
        """
        self._operator = operator
        self._rows = operator.rows
        self._locked = Basis(self._rows.count, start.device, self._rows.sum)
        if locked is not None:
            self._locked.append(locked)
        self.max_size = max(0, min(max_size, operator.dim - self._locked.size))
        self._basis = Basis(self._rows.count, start.device, self._rows.sum)
        self._t = torch.zeros(0, 0, dtype=torch.float64, device=start.device)
        self.scale = 0.0
        """Norm of the largest product so far: what rounding errors are relative to."""
        self.num_products = 0
        self._recent: list[Tensor] = []
        """The last two blocks of the basis."""
        self._block, self._start, _ = self._orthonormal(start.to(torch.float64), relative_to=None)
        self._coupling = self._start[:0, :0]

    @property
    def size(self) -> int:
        """Basis vectors whose product is known."""
        return self._basis.size

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
        block, old = self._block, self.size
        b = block.shape[1]
        self._basis.append(block)
        self._recent = [*self._recent[-1:], block]
        rounded = block.to(self._operator.dtype)
        products = torch.cat(
            [x for _, x in product_blocks(self._operator, b, lambda i, j: rounded[:, i:j])],
            dim=1,
        ).to(torch.float64)
        self.num_products += b
        self.scale = max(self.scale, float(self._rows.norms(products).max()))
        self._block, self._coupling, projection = self._orthonormal(
            products, relative_to=self.scale
        )
        t = self._t.new_zeros(self.size, self.size)
        t[:old, :old] = self._t
        t[:, old:] = projection
        t[old:] = projection.T
        self._t = t

    def ritz(self) -> Ritz:
        """Return the Ritz pairs of the present subspace."""
        with threads_for(self.size):
            values, coordinates = torch.linalg.eigh((self._t + self._t.T) / 2)
        tail = coordinates[self.size - self._coupling.shape[1] :]
        residuals = torch.linalg.vector_norm(self._coupling @ tail, dim=0)
        floor = self._operator.error(self.scale, self.size)
        weights = (self._start.T @ coordinates[: self._start.shape[0]]) ** 2
        return Ritz(values, coordinates, residuals.clamp_min(floor), weights)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Return the vectors with the given coordinates, shape ``(dim, n)``."""
        return self._basis.vectors(coordinates)

    def _orthonormal(
        self, block: Tensor, relative_to: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Split ``block = V C + Q R`` (and what is locked); rounding errors are dropped.

        ``Q`` is orthonormal, and orthogonal to basis and locked vectors. Returns ``Q, R, C``.
        """
        found = block.new_zeros(self.size, block.shape[1])
        recent = torch.cat(self._recent, dim=1) if self._recent else block[:, :0]
        for _ in range(2):
            block = self._locked.without(block)
            along = self._rows.sum(recent.T @ block)
            found[self.size - len(along) :] += along
            block = block - recent @ along
        q, r = self._rows.qr(block)
        largest = float(torch.linalg.matrix_norm(r, 2)) if r.numel() else 0.0
        noise = 100 * EPS * (relative_to or largest) * self._operator.dim**0.5
        q, r = _significant(q, r, noise)
        again = bool(q.shape[1])
        while again:
            along = self._basis.coordinates(q)
            found += along @ r
            again = bool((along.abs() > ALONG).any())
            q, s = self._rows.qr(self._locked.without(q - self._basis.vectors(along)))
            q, r = _significant(q, s @ r, noise)
            again = again and bool(q.shape[1])
        return q, r, found


def _significant(q: Tensor, r: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Factors of ``q r`` without directions of singular values up to ``noise``."""
    left, singular, right = torch.linalg.svd(r, full_matrices=False)
    keep = singular > noise
    q = (left[:, keep].T @ q.T).T  # each column contiguous: passes through memory are twice as fast
    return q, singular[keep, None] * right[keep]
