"""A Gaussian sketch of a symmetric matrix of low rank, and what can be read off it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_hessrank.estimators.dense import symmetric_eigenvalues
from lightning_hessrank.estimators.probes import GaussianProbes
from lightning_hessrank.hessian.operator import (
    Progress,
    SymmetricOperator,
    multiply_in_blocks,
    product_blocks,
)
from lightning_hessrank.threads import threads_for

#: Columns of ``HΩ`` kept until they are multiplied with ``Ωᵀ``: wide products are fast, and
#: where ``Ω`` is drawn again it is so once for each.
SLAB = 512


class SketchCore:
    """The ``k × k`` matrix ``ΩᵀHΩ`` of a Gaussian ``Ω``, which can grow.

    Almost surely its rank is ``min(k, rank H)``. ``Ω`` is drawn from its seed again whenever it
    does not fit into memory.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        seed: int,
        memory_limit: int,
        *,
        keep_image: bool = False,
    ) -> None:
        """Start with no columns.

        Args:
            operator: the matrix ``H``.
            seed: of ``Ω``.
            memory_limit: bytes.
            keep_image: remember ``HΩ`` while it fits into memory; :meth:`spectrum` needs it.
        """
        self.operator = operator
        self._probes = GaussianProbes(
            operator.dim, seed, dtype=operator.dtype, device=operator.device
        )
        self._limit = memory_limit
        self._column_bytes = operator.dim * operator.dtype.itemsize
        self.matrix = torch.zeros(0, 0, dtype=operator.dtype, device=operator.device)
        self._slabs: list[Tensor] | None = [] if keep_image else None

    @property
    def size(self) -> int:
        """Number of columns, and of products so far."""
        return self.matrix.shape[0]

    def columns(self, start: int, stop: int) -> Tensor:
        """Return columns of ``Ω``."""
        return self._probes.columns(start, stop)

    def grow(self, size: int, progress: Progress | None = None) -> None:
        """Add columns up to ``size``; those at hand are kept."""
        old = self.size
        core = self.matrix.new_zeros(size, size)
        core[:old, :old] = self.matrix
        width = max(1, min(SLAB, self._limit // (8 * self._column_bytes)))
        room = self._limit // 2 - 3 * width * self._column_bytes
        image = size * self._column_bytes
        if self._slabs is None or image + 8 * size**2 * self.matrix.itemsize > room:
            self._slabs, kept = None, 0  # of an image, or of one and what is made of it
        else:
            kept = image
        keep = kept + size * self._column_bytes <= room
        columns = partial(columns_of, self.columns(0, size)) if keep else self.columns
        for first in range(old, size, width):
            slab = self._products(columns, slice(first, min(first + width, size)), size, progress)
            stop = first + slab.shape[1]
            if self._slabs is not None:
                self._slabs.append(slab)
            for top in range(0, stop, width):
                rows = slice(top, min(top + width, stop))
                core[rows, first:stop] = columns(rows.start, rows.stop).T @ slab
        self.matrix = torch.triu(core) + torch.triu(core, 1).T

    def spectrum(self, rank: int) -> tuple[Tensor, float] | None:
        """Return the matrix's eigenvalues but for zeros, and their error, if ``HΩ`` was kept.

        With ``C = ΩᵀHΩ`` of rank ``rank(H)``, ``H = Y C⁺ Yᵀ`` for ``Y = HΩ``: for ``H = UΛUᵀ`` and
        ``G = UᵀΩ`` of full row rank, ``C⁺ = G⁺Λ⁻¹(G⁺)ᵀ`` and ``Y G⁺ = UΛ``. So with ``Y = QR`` the
        eigenvalues are those of ``R C⁺ Rᵀ``. An error ``E`` in ``C`` is felt as ``(G⁺)ᵀ E G⁺``: it
        does not grow with the condition of ``H``. How large it is, two true products tell.

        Args:
            rank: of the matrix, below :attr:`size`.

        Returns:
            Eigenvalues, shape ``(size,)``, ascending, and an estimate of ``‖H − Y C⁺ Yᵀ‖_F``.
        """
        if self._slabs is None:
            return None
        with threads_for(self.size):
            values, vectors = torch.linalg.eigh(self.matrix)
        top = values.abs().argsort(descending=True)[:rank]
        values, vectors = values[top], vectors[:, top]
        left = self._triangular() @ vectors
        eigenvalues = symmetric_eigenvalues((left / values) @ left.T)
        probes = self._probes.columns(self.size, self.size + 2)
        inner = vectors @ ((vectors.T @ self._times_image(probes)) / values[:, None])
        parts = inner.split([slab.shape[1] for slab in self._slabs])
        product = sum(slab @ part for slab, part in zip(self._slabs, parts, strict=True))
        error = torch.linalg.vector_norm(multiply_in_blocks(self.operator, probes) - product)
        return eigenvalues, float(error) / 2**0.5

    def _triangular(self) -> Tensor:
        """``R`` of ``Y = QR``, from a few rows at a time: no second matrix of that size."""
        r, step = self.matrix[:0], max(256, 2 * self.size)
        for first in range(0, self.operator.dim, step):
            rows = torch.cat([slab[first : first + step] for slab in self._slabs or ()], dim=1)
            r = torch.linalg.qr(torch.cat([r, rows]), mode="r").R
        return r

    def _times_image(self, vectors: Tensor) -> Tensor:
        """``Yᵀ v``."""
        return torch.cat([slab.T @ vectors for slab in self._slabs or ()])

    def _products(
        self,
        columns: Callable[[int, int], Tensor],
        numbers: slice,
        total: int,
        progress: Progress | None,
    ) -> Tensor:
        """Return ``H`` times some columns."""
        start, stop = numbers.start, numbers.stop
        slab = self.matrix.new_empty(self.operator.dim, stop - start)

        def report(done: int, _: int) -> None:
            if progress is not None:
                progress(done, total)

        for block, products in product_blocks(self.operator, stop, columns, report, start=start):
            slab[:, block.start - start : block.stop - start] = products
        return slab


def columns_of(matrix: Tensor, start: int, stop: int) -> Tensor:
    """Return some columns of a matrix at hand."""
    return matrix[:, start:stop]
