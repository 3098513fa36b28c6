"""The patch bound: layer by layer, for linear networks of any topology.

For one layer write the network as ``F = A T(w) S + C``: ``S`` maps the network's input to the
layer's, ``A`` its output to the network's, ``C`` are the paths around it. The layer's column block
of the functional Hessian maps a direction ``V`` to the changes of all gradients,

* of later layers: ``⟨Ω, A' T(V) S⟩`` with ``A'`` a derivative of ``A``;
* of earlier layers: ``⟨Ω, A T(V) S'⟩`` with ``S'`` a derivative of ``S``;

while layers on parallel paths see nothing of it, nor does the layer itself, which enters once.
With ``V`` of shape ``(m, c, k)``, each row of the first kind lies in ``R^m ⊗ P``, where ``P`` is
the span of its slices over the output channels, the *patch slices*, and each row of the second
kind in ``Q ⊗ R^c`` with ``Q`` the span of the *adjoint slices* over the input channels. So with
``α = dim P`` and ``β = dim Q``

    rank ≤ min(p_l, m α + c β - o, min(m α, G) + min(c β, E))

``o = α β`` for one tap (``R^m ⊗ P`` and ``Q ⊗ R^c`` meet in ``Q ⊗ P``), else 0. A bias is a weight
on a constant input: its gradient is one more entry of each patch slice, the patches without it
have dimension ``α - 1`` at least, and ``o = (α - 1) β``. ``G`` bounds the rank of the rows of later
layers by the sum of each one's own ``c β``, ``E`` that of earlier layers by the sum of ``m α``.
With groups, sums over the groups. Of several uses of the same weight, the sum.

``α`` and ``β`` are taken at one random point, where they are as large as anywhere (see
:mod:`~lightning_hessrank.bounds.generic`). That the derivatives ``A'`` and ``S'`` are taken there,
and not all downstream and upstream maps, makes the bound tight at bottlenecks.

The total is ``H = H_f + Jᵀ M J`` with the Jacobian ``J`` and the loss curvature ``M``. Its column
block sees ``V`` through the rows above and through those of ``J``, which have slices too.
With ``α^full``, ``β^full`` the dimensions of the spans with the slices of ``J`` in them,

    rank(H) ≤ min(p, outer + functional,
                  Σ_l min(p_l, column_l + outer, dim(R^m ⊗ P^full + Q ⊗ R^c),
                          dim(R^m ⊗ P + Q^full ⊗ R^c) + number of biases))
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_hessrank.bounds.model import LinearModel
from lightning_hessrank.bounds.slices import PatchSpans, UseSpans, patch_spans
from lightning_hessrank.bounds.spans import GrowingSpan
from lightning_hessrank.bounds.trace import LayerUse
from lightning_hessrank.network.function import layer_name


@dataclass(frozen=True)
class Ranks:
    """Bounds on the ranks of the Hessian, its parts, and the column blocks of its layers."""

    total: int
    outer: int
    functional: int
    columns: dict[str, int]
    """Per layer, of the functional Hessian."""
    total_columns: dict[str, int]
    """Per layer, of the Hessian."""


@dataclass(frozen=True)
class _UseBound:
    column: int
    """Rank of the column block of the functional Hessian."""
    total: int
    """Rank of the column block of the Hessian, the outer-product part included."""


def patch_ranks(model: LinearModel) -> Ranks:
    """The patch bound of a network, without sampling any column block."""
    spans = patch_spans(model)
    outer = _outer(model, spans)
    p = model.num_parameters
    columns = dict.fromkeys(model.layers, 0)
    totals = dict.fromkeys(model.layers, 0)
    for use, bound in zip(model.trace.uses, _use_bounds(model, spans, outer), strict=True):
        for layer in {layer_name(name) for name in use.names}:
            size = model.layer_size(layer)
            columns[layer] = min(size, columns[layer] + bound.column)
            totals[layer] = min(size, totals[layer] + bound.total)
    functional = min(p, sum(columns.values()))
    total = min(p, outer + functional, sum(totals.values()))
    return Ranks(total, outer, functional, columns, totals)


def _outer(model: LinearModel, spans: PatchSpans) -> int:
    """``K' r_x``: for each output, its derivatives see the inputs through ``r_x`` directions only.

    With constants in the network there is one more.
    """
    seen = spans.inputs.ranks[0] + model.has_constant
    bound = min(model.num_parameters, model.outputs * min(model.input_rank, seen))
    return (
        bound
        if model.span.num_samples is None
        else min(bound, model.outputs * model.span.num_samples)
    )


def _use_bounds(model: LinearModel, spans: PatchSpans, outer: int) -> list[_UseBound]:
    """Bounds for every use, in order of execution; ``outer`` bounds the outer-product rank."""
    uses = model.trace.uses
    sizes = [_size(use, model) for use in uses]
    later, earlier = [], []
    for use, size in zip(uses, sizes, strict=True):
        span = spans.uses.get(use.index)
        later.append(size if span is None else min(size, _later(span)))
        seen = 0 if not use.weights else size if span is None else min(size, _earlier(span))
        earlier.append(seen)
    bounds = []
    for i, use in enumerate(uses):
        if not use.is_linear:
            bounds.append(_UseBound(sizes[i], sizes[i]))
            continue
        after, before = sum(earlier[i + 1 :]), sum(later[:i])
        column = min(sizes[i], min(later[i], after) + min(earlier[i], before))
        total = sizes[i]
        span = spans.uses.get(use.index)
        if span is not None:
            column = min(column, _joint(span, span.later, span.earlier))
            biases = sum(model.network.parameters[name].numel() for name in use.biases)
            total = min(
                total,
                _joint(span, span.later_full, span.earlier),
                _joint(span, span.later, span.earlier_full) + biases,
            )
        bounds.append(_UseBound(column, min(total, column + outer)))
    return bounds


def _size(use: LayerUse, model: LinearModel) -> int:
    return sum(model.network.parameters[name].numel() for name in use.names)


def _later(span: UseSpans) -> int:
    return sum(span.layer.slices.rows * alpha for alpha in span.later.ranks)


def _earlier(span: UseSpans) -> int:
    views = zip(span.slices, span.earlier, strict=True)
    return min(sum(s.columns * beta for beta in x.ranks) for s, x in views)


def _joint(span: UseSpans, later: GrowingSpan, earlier: list[GrowingSpan]) -> int:
    """Dimension of ``R^m ⊗ P + Q ⊗ R^c``, at most, summed over the groups."""
    candidates = []
    for (_, m, c, k), side in zip(span.slices, earlier, strict=True):
        size = m * (c * k + span.has_bias)
        overlaps = [
            max(0, alpha - span.has_bias) * beta if k == 1 else 0
            for alpha, beta in zip(later.ranks, side.ranks, strict=True)
        ]
        candidates.append(
            sum(
                min(size, m * alpha + c * beta - o)
                for alpha, beta, o in zip(later.ranks, side.ranks, overlaps, strict=True)
            )
        )
    return min(candidates)
