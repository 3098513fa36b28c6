"""Blocks of a Hessian between pieces of the network: those on the diagonal, and norms of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.hessian.operator import (
    Progress,
    SymmetricOperator,
    product_blocks,
    unit_columns,
)

Piece = Mapping[str, slice]
"""Names of parameters, with those of their rows that belong to a piece of the network."""
#: Random vectors for each piece, where norms are estimated.
PROBES = 32


class Norm(NamedTuple):
    """Frobenius norm of a block, in units of the Hessian."""

    value: float
    std_error: float = 0.0


class Restricted(SymmetricOperator):
    """Some rows, and the same columns, of a symmetric matrix."""

    def __init__(self, operator: SymmetricOperator, numbers: Tensor) -> None:
        self._operator, self._numbers = operator, numbers
        self.dim = len(numbers)
        self.dtype, self.device = operator.dtype, operator.device
        self.block_size, self.name = operator.block_size, operator.name

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with ``vectors`` of shape ``(dim, k)``."""
        whole = vectors.new_zeros(self._operator.dim, vectors.shape[1])
        whole[self._numbers] = vectors
        return self._operator.matmat(whole)[self._numbers]


def rows_of(piece: Piece, parameters: Mapping[str, Tensor]) -> Tensor:
    """Numbers of a piece's parameters among all of some parameters, flattened side by side."""
    found, start = [], 0
    for name, parameter in parameters.items():
        if name in piece:
            numbers = torch.arange(parameter.numel(), device=parameter.device) + start
            found.append(numbers.reshape(parameter.shape or (1,))[piece[name]].flatten())
        start += parameter.numel()
    return torch.cat(found)


def block_norms(
    operator: SymmetricOperator,
    pieces: Sequence[Tensor],
    *,
    exact: bool,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[tuple[int, int], Norm]:
    """Frobenius norms of the blocks between different pieces, by their numbers.

    Args:
        operator: of the whole Hessian.
        pieces: numbers of the rows of each, disjoint.
        exact: by a product with every unit vector; else ``‖B‖² = E ‖B z‖²`` with random signs
            ``z`` on one piece at a time, which takes :data:`PROBES` products for each.
        seed: of the signs.
        progress: called between blocks of products.
    """
    count, dim = len(pieces), operator.dim
    owner = torch.full((dim,), count, device=operator.device)  # last: what is in no piece
    for i, piece in enumerate(pieces):
        owner[piece] = i
    width = dim if exact else count * PROBES
    columns_of = (
        owner if exact else torch.arange(count, device=owner.device).repeat_interleave(PROBES)
    )
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (0 if exact else dim, PROBES), generator=generator) * 2 - 1
    signs = signs.to(device=operator.device, dtype=operator.dtype)

    def columns(start: int, stop: int) -> Tensor:
        if exact:
            return unit_columns(dim, start, stop, signs)
        chosen = torch.arange(start, stop, device=owner.device)
        return signs[:, chosen % PROBES] * (owner[:, None] == columns_of[chosen])

    squares = torch.zeros(count + 1, width, dtype=torch.float64, device=operator.device)
    for numbers, products in product_blocks(operator, width, columns, progress):
        found = products.double().square()
        squares[:, numbers] = squares[:, numbers].index_add(0, owner, found)
    if exact:
        sums = squares.new_zeros(count + 1, count + 1).index_add(1, columns_of, squares)
        return {(i, j): Norm(float(sums[i, j]) ** 0.5) for i, j in combinations(range(count), 2)}
    samples = squares[:count].reshape(count, count, PROBES)
    return {(i, j): _norm(samples[i, j], samples[j, i]) for i, j in combinations(range(count), 2)}


def _norm(*samples: Tensor) -> Norm:
    """From samples of the square on either side: ``σ(‖B‖) = σ(‖B‖²) / 2 ‖B‖``."""
    square = float(torch.cat(samples).mean())
    error = float(sum(x.var() / len(x) for x in samples)) ** 0.5 / len(samples)
    return Norm(square**0.5, error / (2 * square**0.5) if square else 0.0)
