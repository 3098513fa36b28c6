"""Ranks of column blocks, and of the whole Hessian, by sampling them at one random point.

Two uses: the exact generic rank of a small network, and the exact rank of the column blocks of the
small layers of any network, where the patch bound is loose (bottlenecks, 1×1 convolutions, parallel
paths: neighbouring layers that can do the same). Column blocks may be joined at will: with the
layers split into groups ``g``, ``rank(H) ≤ Σ_g rank(H^{•g})``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_hessrank.bounds.generic import GenericHessian
from lightning_hessrank.bounds.inputs import is_clear
from lightning_hessrank.bounds.model import LinearModel
from lightning_hessrank.bounds.patch import Ranks
from lightning_hessrank.threads import threads_for
from lightning_hessrank.tolerance import NumericalRank, machine_rtol, numerical_rank

#: Consecutive layers are sampled together up to this many parameters.
GROUP_SIZE = 1024
#: Multiply-adds that sampling may take: some seconds on one core.
BUDGET = 6_000_000_000
#: A sketch wider than this is not made: its eigenvalues take longer than seconds.
MAX_SKETCH = 2500
#: More entries of a Jacobian than this are not stored.
MAX_JACOBIAN = 10_000_000
#: A sketch is wider than the rank it has to show by this margin.
MARGIN = 16
#: Random points at which a rank without such a gap is looked for.
ATTEMPTS = 5


def jacobian_is_cheap(model: LinearModel) -> bool:
    """Whether the whole Jacobian at generic inputs can be formed."""
    each = sum((f if model.is_whole else f[0]).numel() for f in model.trace.outputs)
    rows = model.input_rank * each
    cost = rows * model.product_cost() // max(1, model.residual_samples())
    return rows * model.num_parameters <= MAX_JACOBIAN and cost <= BUDGET


def generic_width(model: LinearModel, bound: Ranks) -> int | None:
    """Columns of a sketch that shows the exact rank, or ``None`` where it takes too long."""
    p = model.num_parameters
    width = min(p, bound.total + MARGIN)
    affordable = width <= MAX_SKETCH and width * model.product_cost() <= BUDGET
    return width if affordable and jacobian_is_cheap(model) else None


def generic_ranks(model: LinearModel, bound: Ranks, width: int) -> Ranks | None:
    """Exact generic ranks of the Hessian and its parts, and of the layers' column blocks.

    With ``width`` above the rank, a Gaussian sketch ``VᵀHV`` has the rank of ``H``. Where the
    spectrum shows no clear gap, other random points are tried. ``None`` if all are unclear.
    """
    for _ in range(ATTEMPTS):
        found, ranks = _generic_at_one_point(model, bound, width)
        if all(is_clear(r) for r in ranks):
            total, outer, functional = (r.rank for r in ranks)
            return replace(
                found,
                total=min(total, bound.total),
                outer=min(outer, bound.outer),
                functional=min(functional, bound.functional),
            )
    return None


def _generic_at_one_point(
    model: LinearModel, bound: Ranks, width: int
) -> tuple[Ranks, tuple[NumericalRank, ...]]:
    hessian = GenericHessian(model)
    p = hessian.size
    V = _gaussian(model, p, width) if width < p else torch.eye(p, dtype=torch.float64)
    functional_core = V.T @ hessian.functional(V)
    outer = _OuterProduct(hessian)
    pushed = outer.rows @ V
    total_core = _sum(functional_core, outer.core(pushed, pushed))
    columns = dict(bound.columns)
    if width == p:
        for layer in model.layers:
            block = functional_core[:, _places(model, [layer])]
            columns[layer] = _rank_up_to(block, bound.columns[layer], model)
    ranks = (_symmetric_rank(total_core), _rank(pushed), _symmetric_rank(functional_core))
    return replace(bound, columns=columns), ranks


def sharpened(model: LinearModel, bound: Ranks) -> Ranks:
    """Replace the bounds of small layers by the exact ranks of their column blocks, if smaller."""
    cost, budget = model.product_cost(), BUDGET
    groups = []
    for group in _groups(model):
        size = sum(model.layer_size(layer) for layer in group)
        if size <= GROUP_SIZE and size * cost <= budget:
            budget -= size * cost
            groups.append(group)
    cheap = jacobian_is_cheap(model)
    if not groups and not cheap:  # not even one evaluation is
        return bound
    hessian = GenericHessian(model)
    outer = _OuterProduct(hessian) if cheap else None
    if outer is not None:
        exact = _rank_up_to(outer.rows, bound.outer, model)
        bound = replace(bound, outer=min(bound.outer, exact))
    functional, total = sum(bound.columns.values()), sum(bound.total_columns.values())
    columns, totals = dict(bound.columns), dict(bound.total_columns)
    for group in groups:
        sampled = _sample_group(hessian, outer, group, bound)
        functional -= sum(bound.columns[x] for x in group) - sampled.functional
        total -= sum(bound.total_columns[x] for x in group) - sampled.total
        columns |= sampled.columns
    p = model.num_parameters
    functional = min(p, functional, bound.functional)
    total = min(p, bound.outer + functional, total, bound.total)
    return Ranks(total, bound.outer, functional, columns, totals)


@dataclass(frozen=True)
class _Sampled:
    functional: int
    total: int
    columns: dict[str, int]


def _sample_group(
    hessian: GenericHessian, outer: _OuterProduct | None, group: Sequence[str], bound: Ranks
) -> _Sampled:
    model = hessian.model
    places = _places(model, group)
    unit = torch.zeros(hessian.size, len(places), dtype=torch.float64)
    unit[places] = torch.eye(len(places), dtype=torch.float64)
    block = hessian.functional(unit)
    limit = sum(bound.columns[x] for x in group)
    columns, at = {}, 0
    for layer in group:
        width = model.layer_size(layer)
        columns[layer] = _rank_up_to(block[:, at : at + width], bound.columns[layer], model)
        at += width
    functional = min(sum(columns.values()), _rank_up_to(block, limit, model))
    total = sum(bound.total_columns[x] for x in group)
    if outer is not None:
        whole = _sum(block, outer.core(outer.rows, outer.rows[:, places]))
        total = min(total, _rank_up_to(whole, total, model))
    return _Sampled(functional, min(total, functional + bound.outer), columns)


def _groups(model: LinearModel) -> list[list[str]]:
    """Consecutive layers, joined as long as they stay small."""
    groups: list[list[str]] = []
    filled = GROUP_SIZE
    for layer in model.layers:
        size = model.layer_size(layer)
        if filled + size > GROUP_SIZE:
            groups.append([])
            filled = 0
        groups[-1].append(layer)
        filled += size
    return groups


def _places(model: LinearModel, layers: Sequence[str]) -> Tensor:
    """Places of some layers' parameters in the vector of all parameters, layer by layer."""
    places, start = {}, 0
    for name, p in model.network.parameters.items():
        places[name] = torch.arange(start, start + p.numel())
        start += p.numel()
    return torch.cat([places[name] for layer in layers for name in model.layers[layer]])


class _OuterProduct:
    """The outer-product Hessian ``rowsᵀ · curvature · rows`` of generic data.

    For MSE the curvature is constant, and as many samples as the inputs' rank are as general as any
    number, since only their covariance counts. For other losses each sample has a curvature of its
    own, and their sum over more samples is more general than over few: a generic symmetric
    matrix on the row space of the Jacobian then has the largest rank of all.
    """

    def __init__(self, hessian: GenericHessian) -> None:
        model = hessian.model
        self.rows = hessian.jacobian(max(1, model.input_rank))
        n, generator = len(self.rows), model.generator
        samples = model.span.num_samples
        if model.loss.identity_curvature:
            self._curvature = torch.eye(n, dtype=torch.float64)
        elif samples is not None and samples <= model.input_rank and not model.is_whole:
            weights = 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)
            self._curvature = torch.diag(weights)
        else:
            _, values, basis = torch.linalg.svd(self.rows, full_matrices=False)
            found = numerical_rank(values, machine_rtol(max(self.rows.shape)))
            rank = found.rank if is_clear(found) else len(basis)
            self.rows = basis[:rank]
            half = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
            self._curvature = half + half.T

    def core(self, left: Tensor, right: Tensor) -> Tensor:
        """Product ``leftᵀ · curvature · right`` of rows seen along two sets of directions."""
        return left.T @ (self._curvature.to(left) @ right)


def _sum(functional: Tensor, outer: Tensor) -> Tensor:
    """Sum of the two parts at equal size: the size of generic residuals is free."""
    sizes = float(functional.norm()), float(outer.norm())
    return functional * (sizes[1] / sizes[0]) + outer if min(sizes) > 0 else functional + outer


def _gaussian(model: LinearModel, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=model.generator, dtype=torch.float64)


def _rank_up_to(matrix: Tensor, limit: int, model: LinearModel) -> int:
    """Rank of a matrix that is known to be at most ``limit``: of its sketch from both sides.

    Where the singular values show no clear gap, ``limit`` itself.
    """
    width = limit + MARGIN
    if width < matrix.shape[1]:
        matrix = matrix @ _gaussian(model, matrix.shape[1], width).to(matrix)
    if width < matrix.shape[0]:
        matrix = _gaussian(model, width, matrix.shape[0]).to(matrix) @ matrix
    rank = _rank(matrix)
    return min(limit, rank.rank) if is_clear(rank) else limit


def _rank(matrix: Tensor) -> NumericalRank:
    values = torch.linalg.svdvals(matrix)
    return numerical_rank(values, machine_rtol(max(matrix.shape)))


def _symmetric_rank(matrix: Tensor) -> NumericalRank:
    matrix = (matrix + matrix.T) / 2
    for _ in range(3):  # rows of equal size: layers differ, and small ones would drown
        norms = matrix.norm(dim=1)
        scale = torch.where(norms > 0, norms, 1.0).rsqrt()
        matrix = scale[:, None] * matrix * scale
    with threads_for(len(matrix)):
        return numerical_rank(torch.linalg.eigvalsh(matrix))
