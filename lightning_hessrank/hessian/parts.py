"""The Hessian and its parts as operators, and the loss that one asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_hessrank.hessian.curvature import Curvature
from lightning_hessrank.hessian.dense import assemble, dense_cost
from lightning_hessrank.hessian.gram import outer_gram
from lightning_hessrank.hessian.operator import Progress, SymmetricOperator
from lightning_hessrank.results import PARTS, NonFiniteError, Part


class OutputsUnknownError(ValueError):
    """The parts were asked for, but the tensor that enters the loss is not known."""


class PartOperator(SymmetricOperator):
    """A part of the Hessian, or its diagonal block for some parameters."""

    def __init__(self, curvature: Curvature, part: Part, indices: tuple[int, ...]) -> None:
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
        return torch.cat([x.reshape(len(x), -1) for x in products], dim=1).T

    def to_dense(self, progress: Progress | None = None) -> Tensor:
        """Return the matrix, by :func:`~lightning_hessrank.hessian.dense.assemble`."""
        return assemble(self.curvature, self.part, self.indices, self, progress)

    def dense_cost(self) -> float:
        """Return the time of :meth:`to_dense` in products."""
        return dense_cost(self.curvature, self.part, self.indices)

    def smaller_matrix(
        self, than: int | None = None, progress: Progress | None = None
    ) -> Tensor | None:
        """Return the Gram matrix of the outer part's factor, where that is smaller."""
        if self.part != "outer":
            return None
        rows = self.dim if than is None else than
        return outer_gram(self.curvature, self.indices, self, rows, progress)

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


class LossCurvature(Curvature):
    """The curvature of a loss function, and what it is asked for: its parts as operators."""

    def operator(
        self, part: Part = "total", parameters: Sequence[str] | None = None
    ) -> SymmetricOperator:
        """Return the Hessian (``"total"``) or one of its parts as an operator.

        Args:
            part: which part.
            parameters: names of some parameters: only their diagonal block; ``None``: all.

        Raises:
            OutputsUnknownError: a part of a loss whose network output is unknown.
            ValueError: an unknown name, or no name.
        """
        if part != "total" and not self.outputs_known:
            raise OutputsUnknownError(
                f"part={part!r} needs the network's output, but no known loss function was seen; "
                'return {"loss": loss, "output": output} from the step or loss_fn, or use a loss '
                "of torch.nn.functional"
            )
        return PartOperator(self, part, self._indices(parameters))

    def operators(self) -> dict[Part, SymmetricOperator]:
        """Return the operators of all parts that there are; the total alone without an output."""
        seen = PARTS if self.outputs_known else PARTS[:1]
        return {part: self.operator(part) for part in seen}

    def _indices(self, parameters: Sequence[str] | None) -> tuple[int, ...]:
        if parameters is None:
            return tuple(range(len(self.names)))
        unknown = sorted(set(parameters) - set(self.names))
        if unknown or not parameters:
            raise ValueError(
                f"parameters must name some of {', '.join(self.names)}; got "
                f"{', '.join(unknown) if unknown else 'no name'}"
            )
        return tuple(i for i, name in enumerate(self.names) if name in set(parameters))
