"""The nonzero eigenvalues of the outer part at the size of the data: the Gram matrix of its factor.

``H_o = GᵀG`` with one row of ``G`` for every sample and direction in which its loss is curved, so
``GGᵀ``, of size ``N K'``, has the nonzero eigenvalues of ``H_o``, whatever ``p`` is.
It is found in the first of these ways that is possible:

1. from the layers' signals and patches (:mod:`lightning_hessrank.hessian.factor`), ``K'`` passes,
   where these own all parameters and samples do not interact; no row of a weight that is too large
   for memory is formed;
2. row by row: ``N K'`` gradients, for any module, where ``G`` fits into memory;
3. column by column, ``G(Gᵀ e)``: about twice the time, and no memory but for the result.

All suppose that the loss is curved within samples only. That, and whatever the first way supposes,
is not assumed: both ``G`` and ``GGᵀ`` are compared with true products along random directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_hessrank.hessian import factor
from lightning_hessrank.hessian.curvature import Curvature
from lightning_hessrank.hessian.graph import Graph
from lightning_hessrank.hessian.operator import (
    Progress,
    SymmetricOperator,
    agrees,
    blocks,
    multiply_in_blocks,
    random_vectors,
    symmetrise_,
    unit_columns,
)
from lightning_hessrank.hessian.root import outputs_per_sample, root_of_loss
from lightning_hessrank.network.recorder import LayerRecorder


def outer_gram(
    curvature: Curvature,
    indices: Sequence[int],
    operator: SymmetricOperator,
    max_rows: int,
    progress: Progress | None = None,
) -> Tensor | None:
    """Return ``GGᵀ``, float64, with fewer rows than ``max_rows``; ``None`` where there is none.

    Args:
        curvature: of the loss.
        indices: numbers of the parameters that make up rows and columns of the outer part.
        operator: the outer part, with whose products the factor is compared.
        max_rows: rows that the matrix has to stay below.
        progress: called between blocks of rows.
    """
    roots = _roots(curvature, max_rows)
    if roots is None:
        return None
    found = Factor(curvature, indices, roots)
    vectors = random_vectors(operator.dim, curvature.parameters[0])
    if not found.rows:  # the loss is flat in the output, as an absolute error is
        flat = not bool(multiply_in_blocks(operator, vectors).any())
        return vectors.new_zeros(0, 0, dtype=torch.float64) if flat else None
    if not agrees(found.transposed(found.times(vectors)), multiply_in_blocks(operator, vectors)):
        return None
    vectors = random_vectors(found.rows, vectors)
    products = found.times(found.transposed(vectors))

    def right(gram: Tensor) -> bool:
        return agrees(gram.to(vectors) @ vectors, products, size=operator.dim)

    gram = _from_layers(found)
    if gram is None or not right(gram):
        gram = _from_products(found, operator, progress)
    return gram if right(gram) else None


class Factor:
    """``G``, known by its products; rows are ordered by terms, directions, samples."""

    def __init__(
        self, curvature: Curvature, indices: Sequence[int], roots: Sequence[Tensor]
    ) -> None:
        """Remember ``roots``: those of every term's loss, ``(J, samples, outputs)``."""
        self.curvature, self.indices = curvature, tuple(indices)
        self._roots = roots
        self._counts = [root[..., 0].numel() for root in roots]
        self._parameters = [curvature.parameters[i] for i in indices]
        self._sizes = [x.numel() for x in self._parameters]
        self.rows, self.columns = sum(self._counts), sum(self._sizes)

    def times(self, vectors: Tensor) -> Tensor:
        """``G v`` for vectors of shape ``(columns, k)``; returns ``(rows, k)``."""
        columns = {
            i: piece.reshape(-1, *x.shape)
            for i, x, piece in zip(
                self.indices, self._parameters, vectors.T.split(self._sizes, dim=1), strict=True
            )
        }
        parts = []
        for scale, graph, root in self._terms():
            pushed = graph.push_forward(columns)[0].reshape(-1, *root.shape[1:])
            parts.append(scale * torch.einsum("jnm,knm->kjn", root, pushed).flatten(1))
        return torch.cat(parts, dim=1).T

    def transposed(self, vectors: Tensor) -> Tensor:
        """``Gᵀ x`` for vectors of shape ``(rows, k)``; returns ``(columns, k)``."""
        total = vectors.new_zeros(vectors.shape[1], self.columns)
        parts = vectors.T.split(self._counts, dim=1)
        for (scale, graph, root), part in zip(self._terms(), parts, strict=True):
            if not bool(part.any()):  # most terms, where each holds a single sample
                continue
            coefficients = part.reshape(len(part), *root.shape[:2])
            cotangents = torch.einsum("kjn,jnm->knm", coefficients, root)
            shape = graph.outputs[0].shape
            pulled = graph.pull_back([cotangents.reshape(-1, *shape)], self._parameters)
            flat = torch.cat([g.reshape(len(g), -1) for g in pulled], dim=1)
            total.add_(flat, alpha=scale)
        return total.T

    def groups(self) -> list[list[int]]:
        """Numbers of the parameters, a few at a time, as many as rows of ``G`` fit for."""
        each = 2 * self.rows * self.curvature.dtype.itemsize
        groups: list[list[int]] = []
        left = 0
        for i, size in zip(self.indices, self._sizes, strict=True):
            if size * each > left:
                groups.append([])
                left = self.curvature.max_bytes // 2
            groups[-1].append(i)
            left -= size * each
        return groups

    @property
    def fits(self) -> bool:
        """Whether ``G`` fits into memory."""
        each = 2 * self.rows * self.curvature.dtype.itemsize
        return self.columns * each <= self.curvature.max_bytes // 2

    def _terms(self) -> Iterator[tuple[float, Graph, Tensor]]:
        for (weight, graph), root in zip(self.curvature.graphs(), self._roots, strict=True):
            yield math.sqrt(weight), graph, root


def _roots(curvature: Curvature, max_rows: int) -> list[Tensor] | None:
    """Roots of the terms' losses, if these are convex and give fewer rows than ``max_rows``."""
    roots, rows = [], 0
    for weight, graph in curvature.graphs():
        least = sum(f.numel() - f.shape[0] for f in graph.outputs if f.ndim > 1)
        if weight < 0 or rows + least >= max_rows:
            return None
        size = outputs_per_sample(graph)
        root = None if size is None else root_of_loss(graph)
        if size is None or root is None or bool((root.signs < 0).any()):
            return None
        roots.append(root.vectors.reshape(*root.signs.shape, size))
        rows += root.signs.numel()
    return roots if rows < max_rows else None


def outer_factor(curvature: Curvature, indices: Sequence[int]) -> Tensor | None:
    """Return ``G`` for some parameters from the layers, unchecked; ``None`` if they own not all.

    Evaluates the terms once more.
    """
    factors = []
    for term in curvature.terms:
        recorder = LayerRecorder(curvature.named)
        graph = curvature.evaluate(term, recorder)
        names = [curvature.names[i] for i in indices]
        if not recorder.has_all_uses_of(names, {id(curvature.named[name]) for name in names}):
            return None
        found = factor.outer_factor(graph, recorder.uses, indices)
        if found is None:
            return None
        factors.append(found.mul_(math.sqrt(term.weight)))
    return torch.cat(factors)


def outer_pairs(curvature: Curvature, index: int) -> tuple[Tensor, Tensor] | None:
    """Return the pairs of :func:`.factor.outer_pairs` of all terms, unchecked."""
    found = []
    for term in curvature.terms:
        recorder = LayerRecorder(curvature.named)
        graph = curvature.evaluate(term, recorder)
        name = curvature.names[index]
        if not recorder.has_all_uses_of([name], {id(curvature.named[name])}):
            return None
        pairs = factor.outer_pairs(graph, recorder.uses, index)
        if pairs is None:
            return None
        found.append((pairs[0] * math.sqrt(term.weight), pairs[1]))
    signals, inputs = zip(*found, strict=True)
    return torch.cat(signals), torch.cat(inputs)


def _from_layers(found: Factor) -> Tensor | None:
    gram = found.curvature.parameters[0].new_zeros(found.rows, found.rows, dtype=torch.float64)
    for group in found.groups():
        each = sum(found.curvature.sizes[i] for i in group) * found.curvature.dtype.itemsize
        if 2 * found.rows * each > found.curvature.max_bytes // 2:  # a single large weight
            pairs = outer_pairs(found.curvature, group[0])
            if pairs is None or len(pairs[0]) != found.rows:
                return None
            signals, inputs = (x.to(torch.float64) for x in pairs)
            gram.addcmul_(signals @ signals.T, inputs @ inputs.T)
            continue
        some = outer_factor(found.curvature, group)
        if some is None or len(some) != found.rows:
            return None
        some = some.to(torch.float64)
        gram.addmm_(some, some.T)
    return gram


def _from_products(found: Factor, operator: SymmetricOperator, progress: Progress | None) -> Tensor:
    """Row by row where ``G`` fits into memory, else column by column."""
    like = found.curvature.parameters[0]
    rows = like.new_empty(found.rows, found.columns if found.fits else found.rows)

    def unit(start: int, stop: int) -> Tensor:
        return unit_columns(found.rows, start, stop, like)

    def multiply(vectors: Tensor) -> Tensor:
        pulled = found.transposed(vectors)
        return (pulled if found.fits else found.times(pulled)).T

    for numbers, values in blocks(operator, found.rows, unit, multiply, progress=progress):
        rows[numbers] = values
    rows = rows.to(torch.float64)
    return rows @ rows.T if found.fits else symmetrise_(rows)
