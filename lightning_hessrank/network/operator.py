"""A Toeplitz matrix as a linear operator: what it does, without its entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ToeplitzOperator:
    """The Toeplitz matrix ``T`` of a layer as a linear operator, for layers of any size.

    ``T @ x.flatten() + bias`` is the layer's output for one sample ``x``, flattened channel by
    channel: ``vec(z) = T(W) vec(a)`` of Singh, Hofmann, Schölkopf (arXiv 2305.09088), section 3.
    """

    apply: Callable[[Tensor], Tensor]
    """The layer without its bias, on inputs of shape ``(n, *input_shape)``."""
    input_shape: torch.Size
    """Of one sample, with channels."""
    output_shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (output features) and columns (input features)."""
        return self.output_shape.numel(), self.input_shape.numel()

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply with ``vectors`` of shape ``(columns,)`` or ``(columns, k)``."""
        columns = _columns(vectors, self.shape[1], f"a matrix of shape {self.shape}")
        product = self.apply(columns.T.reshape(-1, *self.input_shape)).flatten(1).T
        return product[:, 0] if vectors.ndim == 1 else product

    def transposed_matmul(self, vectors: Tensor) -> Tensor:
        """Multiply ``Tᵀ`` with ``vectors`` of shape ``(rows,)`` or ``(rows, k)``."""
        name = f"the transpose of a matrix of shape {self.shape}"
        columns = _columns(vectors, self.shape[0], name)
        shape = (columns.shape[1], *self.input_shape)
        zero = torch.zeros(shape, dtype=self.dtype, device=self.device, requires_grad=True)
        with torch.enable_grad():
            outputs = self.apply(zero)
        cotangents = columns.T.reshape(-1, *self.output_shape)
        (product,) = torch.autograd.grad(outputs, zero, cotangents)
        rows = product.flatten(1).T
        return rows[:, 0] if vectors.ndim == 1 else rows

    def to_dense(self, block: int = 1024) -> Tensor:
        """The whole matrix, from products with blocks of unit vectors."""
        rows, columns = self.shape
        dense = torch.empty(rows, columns, dtype=self.dtype, device=self.device)
        for start in range(0, columns, block):
            stop = min(start + block, columns)
            unit = torch.zeros(columns, stop - start, dtype=self.dtype, device=self.device)
            unit[start:stop].fill_diagonal_(1.0)
            dense[:, start:stop] = self @ unit
        return dense


def _columns(vectors: Tensor, size: int, matrix: str) -> Tensor:
    columns = vectors[:, None] if vectors.ndim == 1 else vectors
    if columns.ndim != 2 or len(columns) != size:
        raise ValueError(
            f"{matrix} multiplies vectors with {size} rows, got shape {tuple(vectors.shape)}"
        )
    return columns
