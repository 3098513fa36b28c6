"""An orthonormal basis that grows, kept the way that it is read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

#: Bytes by which the basis grows.
CHUNK_BYTES = 2**26


class Basis:
    """Columns ``V`` of shape ``(dim, size)``, float64, each contiguous in memory.

    Products with ``V`` and ``Vᵀ`` then run at the speed of memory (with rows contiguous instead,
    and room for more columns than there are, ``VᵀX`` was seen to take up to 112 times as long). The
    memory is taken a chunk at a time, as the basis grows.

    Args:
        dim: rows that are kept here.
        device: of the columns.
        sum: of inner products over all processes that keep rows; ``None``: there are no others.
    """

    def __init__(
        self, dim: int, device: torch.device, sum: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.dim = dim
        self._sum = sum
        self.size = 0
        self._device = device
        self._chunks: list[Tensor] = []
        """Columns as rows; the last has room for more."""
        self._ends = [0]

    def append(self, block: Tensor) -> None:
        """Add columns, shape ``(dim, b)``."""
        done, b = 0, block.shape[1]
        while done < b:
            used = self.size - self._ends[-1]
            if not self._chunks or used == len(self._chunks[-1]):
                rows = max(b - done, CHUNK_BYTES // (8 * max(self.dim, 1)))
                chunk = torch.empty(rows, self.dim, dtype=torch.float64, device=self._device)
                self._ends = [*self._ends, self.size] if self._chunks else self._ends
                self._chunks.append(chunk)
                used = 0
            count = min(b - done, len(self._chunks[-1]) - used)
            self._chunks[-1][used : used + count] = block[:, done : done + count].T
            self.size += count
            done += count

    def coordinates(self, vectors: Tensor) -> Tensor:
        """``Vᵀ x`` for vectors of shape ``(dim, k)``; returns ``(size, k)``."""
        if not self.size:
            return vectors.new_zeros(0, vectors.shape[1])
        found = torch.cat([rows @ vectors for rows in self._rows()])
        return found if self._sum is None else self._sum(found)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """``V c`` for coordinates of shape ``(size, k)``; returns ``(dim, k)``."""
        total = coordinates.new_zeros(coordinates.shape[1], self.dim)
        ends = [*self._ends, self.size]
        for rows, (first, last) in zip(self._rows(), pairwise(ends), strict=False):
            total.addmm_(coordinates[first:last].T, rows)
        return total.T

    def without(self, vectors: Tensor) -> Tensor:
        """``x − V Vᵀ x``: what of vectors lies outside of the span, to one pass's rounding."""
        return vectors - self.vectors(self.coordinates(vectors)) if self.size else vectors

    def _rows(self) -> list[Tensor]:
        ends = [*self._ends, self.size]
        return [
            chunk[: last - first]
            for chunk, (first, last) in zip(self._chunks, pairwise(ends), strict=False)
        ]
