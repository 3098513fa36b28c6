"""Where the rows of an operator's vectors are: all here, or spread over processes."""

from __future__ import annotations

import torch
from torch import Tensor


class Rows:
    """The rows of vectors that this process holds; by default all of them.

    An estimator multiplies, adds and scales the rows at hand as they are, and comes here for
    whatever needs all of them.

    Args:
        count: of the rows held here.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.most = count
        """Largest count of any process: what all can afford is decided by it."""

    def sum(self, values: Tensor) -> Tensor:
        """Sum what each process has found from its own rows (inner products)."""
        return values

    def norms(self, block: Tensor) -> Tensor:
        """Euclidean norms of the columns of a block ``(count, k)``; shape ``(k,)``."""
        return torch.linalg.vector_norm(block, dim=0)

    def qr(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced QR factors of a block: these rows of ``Q``, and the whole ``R``."""
        q, r = torch.linalg.qr(block)
        return q, r

    def anyone(self, flag: bool) -> bool:
        """Whether a flag is raised on any process that multiplies with the same operator."""
        return flag
