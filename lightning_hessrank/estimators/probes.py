"""Gaussian probe vectors that are drawn again from their seed instead of being kept."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_CHUNK = 32


class Probes(Protocol):
    """Standard normal vectors, each the same whenever it is asked for."""

    def columns(self, start: int, stop: int) -> Tensor:
        """Return columns ``start:stop`` of an endless matrix, or the rows held here."""


class GaussianProbes:
    """Columns of an endless ``(dim, ∞)`` standard normal matrix, which a seed determines.

    Columns come in chunks with a generator each, so that any of them can be drawn again, in any
    order, and are the same whatever the block size. Global generators are not touched.
    """

    def __init__(self, dim: int, seed: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.dim = dim
        self.seed = seed
        self.dtype = dtype
        self.device = device
        self._latest: tuple[int, Tensor] | None = None

    def columns(self, start: int, stop: int) -> Tensor:
        """Return columns ``start:stop``, shape ``(dim, stop - start)``."""
        first = start // _CHUNK
        chunks = [self._chunk(i) for i in range(first, -(-stop // _CHUNK))]
        offset = first * _CHUNK
        return torch.cat(chunks, dim=1)[:, start - offset : stop - offset]

    def _chunk(self, index: int) -> Tensor:
        if self._latest is None or self._latest[0] != index:  # blocks may be single columns
            seed = (self.seed * 1_000_003 + index) % 2**63
            generator = torch.Generator(self.device).manual_seed(seed)
            shape = (_CHUNK, self.dim)
            rows = torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)
            self._latest = index, rows.T
        return self._latest[1]
