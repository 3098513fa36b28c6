"""Rank of the columns of one layer: of the map from a direction ``V`` to what the rest sees of it.

That is ``(V a_n, Vᵀ g_n)_n`` over samples and positions (see
:mod:`lightning_hessrank.bounds.batch`). It vanishes on no more than the sum ``A + B`` of two
subspaces of the weights' space:

* ``A``: row ``i`` of ``V`` in the span of the patches at positions where the rest reads output
  ``i``. The rows of a layer whose units switch off differ in that.
* ``B``: column ``j`` in the span of the adjoint slices at places where input ``j`` depends on
  parameters, again not where the unit behind it is off. Where no place of the input is read twice
  (linear layers, kernels as wide as their stride), a convolution is a linear layer on its patches:
  signals in the place of adjoint slices, ``c k`` columns in that of ``c``.

The rank is ``dim(A + B)``: computed for layers of moderate size, else bounded with what ``A`` and
``B`` have in common if all rows read the same positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hessrank.bounds.inputs import matrix_rank
from lightning_hessrank.bounds.live import LiveUse
from lightning_hessrank.network.layers import Layer
from lightning_hessrank.results import Part

#: Patches wider than this are not looked into: their width is their rank.
MAX_WIDTH = 1200
#: Multiply-adds that one rank may take; beyond, the number of columns or rows is the bound.
BUDGET = 20_000_000_000
#: Entries of unfolded columns held at a time.
BLOCK = 20_000_000
#: Parameters of a group up to which ``dim(A + B)`` is computed.
MAX_EXACT = 900

Unfold = Callable[[Layer, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Span:
    """A subspace, or a bound on its dimension."""

    rank: int
    basis: Tensor | None = None
    """Orthonormal, ``(width, rank)``, where it is known."""


@dataclass(frozen=True, eq=False)
class Spans:
    """Subspaces of one group: of every row for ``A``, of every column for ``B``."""

    spans: list[Span]
    """The different ones."""
    which: list[int]
    """Number of a row's or column's span."""
    union: Span
    """Contains them all."""

    @property
    def rank(self) -> int:
        """``dim A`` or ``dim B``."""
        return sum(self.spans[i].rank for i in self.which)

    @property
    def bases(self) -> list[Tensor] | None:
        """Of every row or column, ``(width, rank)`` each; ``None`` where they are not known."""
        known = [span.basis for span in self.spans if span.basis is not None]
        return [known[i] for i in self.which] if len(known) == len(self.spans) else None


def use_rank(batches: Sequence[LiveUse], part: Part, before: int) -> int:
    """Bound the rank of the columns that one use of a layer adds to a part of the Hessian.

    Args:
        batches: the use on every batch.
        part: which part; the outer one depends on ``V`` through ``V a_n`` only.
        before: ``E``, parameters used before the layer.
    """
    layer, biased = batches[0].use.layer, batches[0].use.has_bias
    groups, m, c, k = layer.slices
    disjoint = k == 1 or _reads_once(layer)
    rows = input_spans(batches, part)
    columns = None if part == "outer" else signal_spans(batches, part, disjoint)
    shifts = int(groups == 1 and all(u.use.behind_softmax for u in batches))
    shape = (m, c * k, 1) if disjoint else (m, c, k)
    total, own, others = 0, 0, 0
    for group, a in enumerate(rows):
        alpha = min(a.rank, (m - shifts) * a.union.rank)
        joint = alpha
        if columns is not None:
            b = columns[group]
            joint += b.rank
            others += b.rank
            overlap = b.union.rank * max(0, a.union.rank - biased) if disjoint else 0
            everywhere = (m - shifts) * a.union.rank + shape[1] * b.union.rank - overlap
            joint = min(joint, everywhere)
            if not shifts:
                joint = min(joint, _dimension_of_sum(a, b, shape) or joint)
        total += min(m * (c * k + biased), joint)
        own += alpha
    return min(total, own + min(others, before))


def cut_rank(batches: Sequence[LiveUse]) -> int | None:
    """Bound the rank of the outer part by what a layer lets pass, where all goes through it.

    Its output changes by ``δW a + W δa``: for every position by something in the range of ``W``,
    and modulo that, of dimension ``r``, by a map of the inputs: ``rank(J) ≤ r · positions + (m - r)
    α``.

    Returns:
        ``None`` where other ways lead past the layer, or it has groups.
    """
    layer = batches[0].use.layer
    groups, m, c, k = layer.slices
    if groups != 1 or not all(u.is_cut for u in batches):
        return None
    weight = layer.to_slices(layer.weight.detach()).reshape(m, c * k).to("cpu", torch.float64)
    if all(u.use.behind_softmax for u in batches):
        weight, m = weight - weight.mean(0), m - 1
    passed = min(m, c * k)
    if weight.numel() <= MAX_EXACT**2:
        passed = min(passed, matrix_rank(weight))
    positions = sum(u.use.output.numel() for u in batches) // layer.slices[1]
    (inputs,) = input_spans(batches, "outer")
    return passed * positions + (m - passed) * inputs.union.rank


def _reads_once(layer: Layer) -> bool:
    """Whether every place of the input is read by one tap at one position, at most."""
    if layer.geometry is None:
        return False
    places = layer.places().flatten()
    inside = places[places < torch.Size(layer.geometry.size).numel()]
    return len(inside) == len(inside.unique())


def _dimension_of_sum(a: Spans, b: Spans, shape: tuple[int, int, int]) -> int | None:
    """``dim(A + B) = dim A + rank((1 - P_A) B)``; ``None`` where that takes too long."""
    m, c, k = shape
    rows, columns = a.bases, b.bases
    if rows is None or columns is None:
        return None
    width = len(rows[0])
    if m * width > MAX_EXACT or b.rank > MAX_EXACT:
        return None
    eye = torch.eye(width, dtype=torch.float64)
    rest = torch.stack([eye - u @ u.T for u in rows])[:, :, : c * k].reshape(m, width, c, k)
    outside = [
        torch.einsum("itb,iwt->iwb", basis.reshape(m, k, -1), rest[:, :, j]).flatten(0, 1)
        for j, basis in enumerate(columns)
    ]
    return a.rank + matrix_rank(torch.cat(outside, dim=1))


def input_spans(batches: Sequence[LiveUse], part: Part) -> list[Spans]:
    """``A`` of every group: for each row, inputs at the positions that a part depends on."""
    layer, biased = batches[0].use.layer, int(batches[0].use.has_bias)
    groups, _, c, k = layer.slices

    def patches(layer: Layer, a: Tensor) -> Tensor:
        columns = layer.patches(a)
        n, *_, positions = columns.shape
        return torch.cat([columns, columns.new_ones(n, groups, biased, positions)], dim=2)

    masks = []
    for u in batches:
        z = u.use.output.detach()
        masks.append(u.use.layer.by_group(u.reached.get(part, torch.ones_like(z)) != 0))
    inputs = [(u.use.layer, u.use.layer.input) for u in batches]
    return _patterned(inputs, patches, (groups, c * k + biased), masks)


def signal_spans(batches: Sequence[LiveUse], part: Part, disjoint: bool) -> list[Spans]:
    """``B`` of every group: for each column, signals where the input depends on parameters.

    Args:
        batches: the use on every batch.
        part: total or functional.
        disjoint: whether a column is one of a patch, or a channel of the input.
    """
    groups, m, _, k = batches[0].use.layer.slices
    signals, masks = [], []
    for u in batches:
        layer = u.use.layer
        signals.append((layer, u.residual_signal if part == "functional" else u.signal))
        moved = torch.ones_like(layer.input) if u.moved is None else u.moved.to(layer.input)
        if disjoint:
            masks.append(layer.patches(moved) != 0)
        else:
            masks.append(layer.images(moved).unflatten(1, (groups, -1)) != 0)
    if disjoint:
        return _patterned(signals, Layer.by_group, (groups, m), masks)
    return _patterned(signals, Layer.adjoint_patches, (groups, m * k), masks)


def _patterned(
    batches: Sequence[tuple[Layer, Tensor]],
    unfold: Unfold,
    shape: tuple[int, int],
    masks: Sequence[Tensor],
) -> list[Spans]:
    """Spans of unfolded columns, for every row of masks ``(N, groups, rows, places)``."""
    groups, width = shape
    joined = torch.cat([x.cpu().movedim(0, 2).flatten(2) for x in masks], dim=2)
    found = []
    for group in joined:
        patterns, which = group.unique(dim=0, return_inverse=True)
        cost = len(patterns) * width * (width + 16) * (group.shape[1] + width)
        if cost > BUDGET // groups:
            patterns, which = group.any(0)[None], torch.zeros_like(which)
        found.append((patterns, which))
    wanted = [torch.cat([patterns.any(0)[None], patterns]) for patterns, _ in found]
    spans = _spans(batches, unfold, shape, wanted)
    return [
        Spans(each[1:], which.tolist(), each[0])
        for each, (_, which) in zip(spans, found, strict=True)
    ]


def _spans(
    batches: Sequence[tuple[Layer, Tensor]],
    unfold: Unfold,
    shape: tuple[int, int],
    masks: Sequence[Tensor],
) -> list[list[Span]]:
    """For each group, spans of the unfolded columns of all batches.

    Args:
        batches: a layer and what is unfolded with it.
        unfold: gives columns, shape ``(N, groups, width, places)``.
        shape: ``(groups, width)``.
        masks: for each group, which columns of all batches span: ``(patterns, places)``.
    """
    (groups, width), places = shape, masks[0].shape[1]
    if width > MAX_WIDTH or groups * width * width * places > BUDGET:
        return [[Span(min(width, int(x.sum()))) for x in mask] for mask in masks]
    generator = torch.Generator().manual_seed(0)
    # A generic mixture of the columns, a little wider than their rank can be, has their rank.
    mixed = min(places, width + 16)
    totals = [torch.zeros(len(mask), width, mixed, dtype=torch.float64) for mask in masks]
    per_sample = max(1, width * places // sum(max(1, len(x)) for _, x in batches))
    start = 0
    for layer, whole in batches:
        step = max(1, BLOCK // per_sample) if layer.has_samples else max(1, len(whole))
        for x in whole.detach().split(step):
            # (groups, width, samples and positions), which is the order of the masks
            columns = unfold(layer, x).to("cpu", torch.float64).movedim(0, 2).flatten(2)
            end = start + columns.shape[2]
            weights = torch.randn(columns.shape[2], mixed, generator=generator, dtype=torch.float64)
            for group, total in enumerate(totals):
                for i, mask in enumerate(masks[group][:, start:end]):
                    total[i] += columns[group][:, mask] @ weights[mask]
            start = end
    return [[_span(x) for x in total] for total in totals]


def _span(matrix: Tensor) -> Span:
    rank = matrix_rank(matrix)
    if not rank:
        return Span(0, matrix[:, :0])
    return Span(rank, torch.linalg.svd(matrix, full_matrices=False).U[:, :rank])
