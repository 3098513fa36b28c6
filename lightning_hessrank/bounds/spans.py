"""Dimensions of spans of patch slices and adjoint slices, by sampling until they stop growing."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_hessrank.tolerance import numerical_rank

#: Spans that may be wider than this are not looked into: their width is their bound.
MAX_WIDTH = 800
#: A vector of unit size that lies in the span up to this adds nothing to it.
TOLERANCE = 1e-12


class GrowingSpan:
    """Dimension of the span of random vectors that come in passes, for several groups at once.

    The vectors are linear (or polynomial) in random numbers that are fresh in each pass. If those
    of one pass lie in the span of the passes before, then all that could ever come do, with
    probability one: lying in a fixed subspace is a polynomial condition on the numbers. So one
    pass that adds nothing proves that the span is complete.
    """

    def __init__(
        self, groups: int, width: int, cap: int, affordable: int, generator: torch.Generator
    ) -> None:
        self.cap = min(width, cap)
        self._bases: list[Tensor] = []
        self._generator = generator
        self._projection: Tensor | None = None
        self.complete = self.cap == 0 or self.cap > MAX_WIDTH or affordable < self.cap
        if self.cap + 8 < width and not self.complete:
            # A generic projection keeps every dimension up to its width.
            self._projection = torch.randn(
                width, self.cap + 8, generator=generator, dtype=torch.float64
            )
        self.ranks = [self.cap] * groups
        """Per group; bounds until ``complete``, exact dimensions from then on."""

    def add(self, vectors: Tensor) -> None:
        """Add the vectors of one pass, shape ``(groups, count, width)``."""
        if self.complete:
            return
        if self._projection is not None:
            vectors = vectors @ self._projection.to(vectors)
        first = not self._bases
        if first:
            self._bases = [vectors.new_zeros(0, vectors.shape[2]) for _ in vectors]
        before = [len(basis) for basis in self._bases]
        self._bases = [
            _extended(b, x, self._generator) for b, x in zip(self._bases, vectors, strict=True)
        ]
        after = [len(basis) for basis in self._bases]
        if (before == after and not first) or all(r >= self.cap for r in after):
            self.close(after)

    def close(self, ranks: list[int]) -> None:
        """Note the dimensions; nothing more needs to be added."""
        self.ranks = [min(r, self.cap) for r in ranks]
        self.complete = True
        self._bases = []


def _extended(basis: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Orthonormal rows that span ``basis`` and ``rows``.

    New directions come from random mixtures of the rows, of ``count`` at a time: fewer new ones
    than that, and there are no more.
    """
    size = float(rows.norm(dim=1).max()) if rows.numel() else 0.0
    count = 32
    while size > 0 and len(basis) < rows.shape[1]:
        rest = rows / size
        if count < len(rows):
            mixture = torch.randn(count, len(rows), generator=generator, dtype=torch.float64)
            rest = mixture.to(rows) @ rest / len(rows) ** 0.5
        for _ in range(2):  # once is not enough where little is left
            rest = rest - (rest @ basis.T) @ basis
        _, values, directions = torch.linalg.svd(rest, full_matrices=False)
        new = numerical_rank(torch.cat([values.new_ones(1), values]), TOLERANCE).rank - 1
        found = directions[:new] - (directions[:new] @ basis.T) @ basis
        basis = torch.cat([basis, torch.linalg.qr(found.T).Q.T])
        if count >= len(rows) or new < count:
            break
        count *= 2
    return basis
