"""Dimensions of spans of patch slices and adjoint slices, by sampling until they stop growing."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_hessrank.bounds.inputs import matrix_rank

#: Spans wider than this are not looked into: their width is their bound.
MAX_WIDTH = 1500
#: A rank is taken after every pass up to this many entries, and seldom beyond.
CHEAP = 200_000


class GrowingSpan:
    """Dimension of the span of random vectors that come in passes, for several groups at once.

    The vectors are linear (or polynomial) in random numbers that are fresh in each pass. If those
    of one pass lie in the span of the passes before, then all that could ever come do, with
    probability one: lying in a fixed subspace is a polynomial condition on the numbers. So one
    pass that adds nothing proves that the span is complete.
    """

    def __init__(self, groups: int, width: int, cap: int, generator: torch.Generator) -> None:
        self.cap = min(width, cap)
        self._rows: Tensor | None = None
        self._seen = 0
        self._projection: Tensor | None = None
        if self.cap + 8 < width:
            # A generic projection keeps every dimension up to its width.
            self._projection = torch.randn(
                width, self.cap + 8, generator=generator, dtype=torch.float64
            )
        self.ranks = [self.cap] * groups
        """Per group; bounds until ``complete``, exact dimensions from then on."""
        self.complete = self.cap == 0 or self.cap > MAX_WIDTH

    def add(self, vectors: Tensor) -> None:
        """Add the vectors of one pass, shape ``(groups, count, width)``."""
        if self.complete:
            return
        if self._projection is not None:
            vectors = vectors @ self._projection.to(vectors)
        size = float(vectors.abs().max()) if vectors.numel() else 0.0
        vectors = vectors / size if size > 0 else vectors
        old = self._rows
        self._rows = vectors if old is None else torch.cat([old, vectors], dim=1)
        count = self._rows.shape[1]
        if old is None or (self._rows.numel() > CHEAP and count < min(2 * self._seen, self.cap)):
            return
        before = [matrix_rank(x) for x in old]
        after = [matrix_rank(x) for x in self._rows]
        self._seen = count
        full = all(r >= self.cap for r in after)
        if before == after or full:
            self.ranks = [min(r, self.cap) for r in after]
            self.complete = True
            self._rows = None
