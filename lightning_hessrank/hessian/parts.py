"""The Hessian, or a part of it, as the operator that estimators see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_hessrank.hessian.dense import assemble
from lightning_hessrank.hessian.operator import Progress, SymmetricOperator
from lightning_hessrank.results import NonFiniteError, Part

if TYPE_CHECKING:
    from lightning_hessrank.hessian.curvature import LossCurvature


class PartOperator(SymmetricOperator):
    """A part of the Hessian, or its diagonal block for some parameters."""

    def __init__(self, curvature: LossCurvature, part: Part, indices: tuple[int, ...]) -> None:
        self.curvature = curvature
        self.part = part
        self.indices = indices
        self.sizes = [curvature.sizes[i] for i in indices]
        self.dim = sum(self.sizes)
        self.dtype = curvature.dtype
        self.device = curvature.device
        self.block_size = curvature.block_size
        self.name = f"{part} Hessian"

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with ``vectors`` of shape ``(dim, k)``."""
        shapes = [self.curvature.parameters[i].shape for i in self.indices]
        pieces = vectors.T.split(self.sizes, dim=1)
        columns = {
            i: piece.reshape(-1, *shape)
            for i, piece, shape in zip(self.indices, pieces, shapes, strict=True)
        }
        products = self.curvature.multiply(self.part, columns, self.indices)
        return torch.cat([x.flatten(1) for x in products], dim=1).T

    def to_dense(self, progress: Progress | None = None) -> Tensor:
        """Return the matrix, by :func:`~lightning_hessrank.hessian.dense.assemble`."""
        return assemble(self.curvature, self.part, self.indices, self, progress)

    def dense_cost(self) -> float:
        """Return the time of :meth:`to_dense` in products."""
        return self.curvature.dense_cost(self.part, self.indices)

    def smaller_matrix(self, than: int | None = None) -> Tensor | None:
        """Return the Gram matrix of the outer part's factor, where that is smaller."""
        if self.part != "outer":
            return None
        factor = self.curvature.outer_factor(self.indices, self.dim if than is None else than)
        return None if factor is None else factor @ factor.T

    def check_finite(self, products: Tensor) -> None:
        """Raise, naming the parameters whose rows are not finite."""
        finite = torch.isfinite(products).flatten(1).all(dim=1).split(self.sizes)
        bad = [
            self.curvature.names[i]
            for i, rows in zip(self.indices, finite, strict=True)
            if not bool(rows.all())
        ]
        if bad:
            raise NonFiniteError(
                f"the {self.name} is not finite at a finite loss, in the rows of {', '.join(bad)}"
            )
