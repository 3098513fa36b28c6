"""Flat directions that a network's structure implies, and what they say of the ranks.

Let ``ξ`` be a direction along which the network's function on the data does not change. Then
``J ξ = 0``, so ``H_o ξ = 0`` at any weights, and with the span ``Ξ`` of such directions

    rank(H_o) ≤ p - rank Ξ,    rank(H) ≤ p - rank Ξ + rank(H Ξ),    and the same for H_f,

since ``H ξ = H_f ξ`` (nothing is left of the outer part). Symmetries of neural networks: Kunin et
al., arXiv 2012.04728; Grigsby et al., arXiv 2209.04036.

Directions are *proposed* from what the network is seen to do: pieces between its layers that let
changes pass (:mod:`lightning_hessrank.bounds.cuts`), outputs that nothing reads, and inputs that
have a low rank where a row of the weight sees them. Each is then *verified*: ``(∇²ℓ) J ξ`` must
vanish to rounding on the live network, else it does not count. So a wrong guess can only lose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hessrank.bounds.columns import input_spans
from lightning_hessrank.bounds.cuts import Solution, solve
from lightning_hessrank.bounds.inputs import CLEAR_GAP, flatten
from lightning_hessrank.bounds.live import (
    LiveBatch,
    LiveUse,
    Mixtures,
    bend,
    gradients,
    output_slopes,
)
from lightning_hessrank.network.autograd import pull_back_somehow
from lightning_hessrank.network.function import Evaluation, layer_name, layers_of
from lightning_hessrank.network.layers import Layer
from lightning_hessrank.network.recorder import RecordedUse
from lightning_hessrank.results import (
    BoundNotAvailableError,
    FlatDirections,
    LayerBound,
    RankBound,
)

#: Parameters up to which directions are sought: their span is a dense matrix.
MAX_PARAMETERS = 1000
#: ``(∇²ℓ) J ξ`` relative to ``‖(∇²ℓ) J‖_F ‖ξ‖`` that passes for rounding.
ZERO = 1e-12
#: Part of a direction outside the span of others, relative to its norm, that makes it a new one.
NEW = 1e-9
#: Up to so many times its size, rounding is told from what is not by a gap.
UNSURE = 100
#: Directions multiplied at a time.
BLOCK = 64

Evaluations = Sequence[Callable[[], Evaluation]]
_LEVELS = (
    "biases that are not seen",
    "rescaling",
    "mixing of channels",
    "what these data do not show",
)


@dataclass(frozen=True, eq=False)
class Symmetries:
    """Verified flat directions of a network on given batches."""

    span: Tensor
    """``Ξ``, orthonormal, ``(p, number)``."""
    explained: tuple[FlatDirections, ...]
    images: Tensor
    """``H Ξ``."""
    rank_of_images: int


def symmetry_bound(
    evaluations: Evaluations,
    batches: Sequence[LiveBatch],
    parameters: Mapping[str, Tensor],
    num_samples: int | None = None,
) -> RankBound:
    """Bound the ranks by the flat directions that the network's structure implies.

    Args:
        evaluations: as in :func:`~lightning_hessrank.bounds.batch.read_batches`.
        batches: what was read of them.
        parameters: trainable parameters by qualified name.
        num_samples: in all batches, for the table.

    Raises:
        BoundNotAvailableError: the outputs are unknown, the loss depends on parameters in another
            way, or there are too many parameters.
    """
    return bound_by(find_symmetries(evaluations, batches, parameters), parameters, num_samples)


def bound_by(
    found: Symmetries, parameters: Mapping[str, Tensor], num_samples: int | None = None
) -> RankBound:
    """Bound the ranks by flat directions."""
    p, flat = len(found.span), found.span.shape[1]
    total = p - flat + found.rank_of_images
    layers = tuple(
        LayerBound(layer, size, size)
        for layer, names in layers_of(parameters).items()
        for size in [sum(parameters[name].numel() for name in names)]
    )
    reason = (
        "Holds for the network itself, at these weights and on these samples: along "
        f"{flat:,} verified directions its function does not change"
    )
    return RankBound(
        total=total,
        outer=p - flat,
        functional=total,
        layers=layers,
        num_parameters=p,
        kind="symmetry",
        is_theorem=True,
        reason=f"{reason}.",
        num_samples=num_samples,
        explained=found.explained,
    )


def find_symmetries(
    evaluations: Evaluations, batches: Sequence[LiveBatch], parameters: Mapping[str, Tensor]
) -> Symmetries:
    """Propose directions, verify them, and multiply them with the Hessian."""
    p = sum(x.numel() for x in parameters.values())
    if p > MAX_PARAMETERS:
        raise BoundNotAvailableError(
            f"symmetries are sought for networks of up to {MAX_PARAMETERS:,} parameters, this one "
            f"has {p:,}"
        )
    if not all(batch.passes_through for batch in batches):
        raise BoundNotAvailableError(
            "symmetries are those of the network's outputs, which are unknown here or do not carry "
            "all of the loss"
        )
    live = _Live(batches, parameters)
    span, explained = live.empty, []
    for element, directions in _proposals(evaluations[0], batches, parameters, live):
        fresh = live.verified(_outside(span, directions))
        if fresh.shape[1]:
            explained.append(FlatDirections(element, fresh.shape[1]))
            span = torch.cat([span, fresh], dim=1)
    images = live.hessian(span)
    return Symmetries(span, tuple(explained), images, live.rank_of(images))


class _Live:
    """Products with the derivatives of the batches."""

    def __init__(self, batches: Sequence[LiveBatch], parameters: Mapping[str, Tensor]) -> None:
        self._own = list(parameters.values())
        self._sizes = [x.numel() for x in self._own]
        self._batches = batches
        self._linearised = []
        for batch in batches:
            u = [torch.zeros_like(f, requires_grad=True) for f in batch.outputs]
            back = gradients(batch.outputs, self._own, u, create_graph=True)
            slopes = output_slopes(batch.loss, batch.outputs)
            whole = gradients((batch.loss,), self._own, create_graph=True)
            probe = [x[None] for x in Mixtures()(batch.outputs)]
            curved = [x != 0 for x in bend(slopes, batch.outputs, probe)]
            self._linearised.append((u, back, slopes, curved, whole))
        probes = torch.cat(Mixtures()([self._own[0].new_zeros(sum(self._sizes), 8)])).cpu()
        rows = self.outer(probes).norm(dim=1) / 8**0.5
        self._rows = torch.where(rows > 0, rows, torch.ones_like(rows))
        self._scale = float(self.hessian(probes).norm()) / 8**0.5

    @property
    def empty(self) -> Tensor:
        """No direction."""
        return torch.zeros(sum(self._sizes), 0, dtype=torch.float64)

    def outer(self, directions: Tensor) -> Tensor:
        """Change of what the loss sees of the outputs of all batches, ``(outputs, k)``."""
        return self._blocks(directions, self._outer)

    def hessian(self, directions: Tensor) -> Tensor:
        """``H ξ``, ``(p, k)``."""
        return self._blocks(directions, self._hessian)

    def verified(self, directions: Tensor) -> Tensor:
        """Those combinations of orthonormal directions along which nothing changes."""
        if not directions.shape[1]:
            return directions
        changes = self.outer(directions) / self._rows[:, None]
        # many outputs: of a tall matrix, the triangular factor has the same values and directions
        factor = torch.linalg.qr(changes, mode="r").R
        _, values, vectors = torch.linalg.svd(factor, full_matrices=True)
        changing = int((values > ZERO * len(changes) ** 0.5).sum())
        return directions @ vectors[changing:].T

    def rank_of(self, images: Tensor) -> int:
        """Rank of products with the Hessian: above the rounding of one of its size.

        Rounding may be larger than that where products are ill-conditioned; then a gap shows it.
        """
        if not images.numel():
            return 0
        rounding = max(images.shape) * torch.finfo(images.dtype).eps * self._scale
        values = torch.linalg.svdvals(images)
        counted, clear = values[values > rounding], values[values > UNSURE * rounding]
        if len(clear) == len(counted) or not len(counted):
            return len(counted)
        gap = float(clear[-1]) / float(counted[len(clear)]) if len(clear) else float("inf")
        return len(clear) if gap >= CLEAR_GAP else len(counted)

    def _blocks(self, directions: Tensor, multiply: Callable[[list[Tensor]], Tensor]) -> Tensor:
        if not directions.shape[1]:
            return torch.zeros(0, 0, dtype=torch.float64)
        products = []
        for block in directions.split(BLOCK, dim=1):
            pieces = block.T.to(self._own[0]).split(self._sizes, dim=1)
            shaped = [v.reshape(-1, *x.shape) for v, x in zip(pieces, self._own, strict=True)]
            products.append(multiply(shaped).to("cpu", torch.float64).T)
        return torch.cat(products, dim=1)

    def _outer(self, columns: list[Tensor]) -> Tensor:
        rows: list[Tensor] = []
        for batch, linearised in zip(self._batches, self._linearised, strict=True):
            u, back, slopes, curved, _ = linearised
            pushed = pull_back_somehow(back, u, columns)
            if batch.ignores_shifts:
                # (∇²ℓ) J ξ would hide samples of which a softmax is certain, and show rounding.
                rows.append((pushed[0] - pushed[0].mean(2, keepdim=True)) * curved[0])
            else:
                rows += bend(slopes, batch.outputs, pushed)
        return flatten(rows)

    def _hessian(self, columns: list[Tensor]) -> Tensor:
        total = columns[0].new_zeros(len(columns[0]), sum(self._sizes))
        for batch, (*_, whole) in zip(self._batches, self._linearised, strict=True):
            rows = pull_back_somehow(whole, self._own, columns)
            total.add_(flatten(rows), alpha=batch.weight)
        return total

    def flat(self, parts: Mapping[str, Tensor], names: Sequence[str], count: int) -> Tensor:
        """Changes of some parameters, ``(count, *shape)``, as directions ``(p, count)``."""
        rows = [
            (parts[name] if name in parts else x.new_zeros(count, x.numel())).reshape(count, -1)
            for name, x in zip(names, self._own, strict=True)
        ]
        return torch.cat(rows, dim=1).to("cpu", torch.float64).T


def _outside(span: Tensor, directions: Tensor) -> Tensor:
    """Orthonormal basis of what directions add to a span."""
    norms = directions.norm(dim=0)
    rest = directions[:, norms > 0] / norms[norms > 0]
    for _ in range(2):
        rest = rest - span @ (span.T @ rest)
    if not rest.shape[1]:
        return rest
    left, values, _ = torch.linalg.svd(rest, full_matrices=False)
    left = left[:, values > NEW]
    return left - span @ (span.T @ left)


def _proposals(
    evaluate: Callable[[], Evaluation],
    batches: Sequence[LiveBatch],
    parameters: Mapping[str, Tensor],
    live: _Live,
) -> Iterator[tuple[str, Tensor]]:
    """Yield elements in words, with directions ``(p, number)``; what is simplest first."""
    names, uses = list(parameters), [x.use for x in batches[0].uses]

    def directions(i: int, changes: Tensor) -> Tensor:
        return live.flat(_of_layer(uses[i], changes, parameters), names, len(changes))

    for name in names:
        size = parameters[name].numel()
        if all(_untouched(batch, parameters[name]) for batch in batches):
            unit = torch.eye(size, dtype=torch.float64).reshape(size, *parameters[name].shape)
            yield f"parameter {name}, which is not used", live.flat({name: unit}, names, size)
    for i, use in enumerate(uses):
        for what, changes in _low_rank([batch.uses[i] for batch in batches]):
            if len(changes):
                yield f"{what} of {_name(use)}", directions(i, changes)
    try:
        solutions, shifts = solve(evaluate, parameters)
    except RuntimeError:  # the network cannot be run on random numbers, or not differentiated
        return
    for i, basis in shifts.items():
        if basis.shape[1]:
            yield f"shifts of outputs of {_name(uses[i])}", directions(i, _shifts(uses[i], basis))
    for level, what in enumerate(_LEVELS):
        for solution in solutions:
            if solution.level == level:
                yield (
                    f"{what} between {_piece(solution, uses)}",
                    _realised(solution, uses, parameters, live),
                )


def _untouched(batch: LiveBatch, parameter: Tensor) -> bool:
    (slope,) = torch.autograd.grad(
        batch.outputs, [parameter], [torch.ones_like(f) for f in batch.outputs],
        retain_graph=True, allow_unused=True,
    )  # fmt: skip
    return slope is None


def _name(use: RecordedUse) -> str:
    return layer_name(min(use.names))


def _piece(solution: Solution, uses: Sequence[RecordedUse]) -> str:
    sides = (solution.piece.writers, solution.piece.readers)
    before, behind = (", ".join(dict.fromkeys(_name(uses[i]) for i in x)) for x in sides)
    inside = ", ".join(dict.fromkeys(layer_name(x) for x in solution.piece.free))
    words = f"{before or 'the input'} and {behind or 'the output'}"
    return f"{words} ({inside})" if inside else words


def _low_rank(batches: Sequence[LiveUse]) -> Iterator[tuple[str, Tensor]]:
    """Rows of a weight that may change: units that are off, and inputs that do not span all."""
    layer, biased = batches[0].use.layer, int(batches[0].use.has_bias)
    groups, m, c, k = layer.slices
    width = c * k + biased
    off: list[Tensor] = []
    low: list[Tensor] = []
    for group, spans in enumerate(input_spans(batches, "outer")):
        for row, basis in enumerate(spans.bases or []):
            rest = torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] :].T
            changes = torch.zeros(len(rest), groups, m, width, dtype=torch.float64)
            changes[:, group, row] = rest
            (low if basis.shape[1] else off).append(changes)
    empty = torch.zeros(0, groups, m, width, dtype=torch.float64)
    yield "dead units", torch.cat([empty, *off])
    yield "low rank of the inputs", torch.cat([empty, *low])


def _shifts(use: RecordedUse, basis: Tensor) -> Tensor:
    """Changes of a weight that move its outputs along unseen channels only."""
    groups, m, c, k = use.layer.slices
    width = c * k + use.has_bias
    along = basis.T.reshape(-1, groups, m)
    unit = torch.eye(width, dtype=torch.float64)
    found = [
        torch.einsum("am,wv->awmv", along[:, group], unit).flatten(0, 1)[:, None]
        for group in range(groups)
        if groups == 1 or not bool(along[:, [g for g in range(groups) if g != group]].any())
    ]
    return torch.cat(found) if groups == 1 and found else torch.zeros(0, groups, m, width)


def _of_layer(
    use: RecordedUse, changes: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Bring changes ``(k, groups, m, c k + bias)`` of a layer to its parameters."""
    layer = use.layer
    groups, m, c, k = layer.slices
    weights = changes[..., : c * k].reshape(-1, groups, m, c, k)
    ends = [layer.weight]
    cotangents = [torch.stack([layer.from_slices(w) for w in weights])]
    if use.has_bias and layer.bias is not None:
        ends.append(layer.bias)
        cotangents.append(changes[..., -1].reshape(-1, *layer.bias.shape))
    names = sorted(use.names)
    grads = pull_back_somehow(
        ends, [parameters[n] for n in names], [x.to(layer.weight) for x in cotangents]
    )
    return dict(zip(names, grads, strict=True))


def _realised(
    solution: Solution,
    uses: Sequence[RecordedUse],
    parameters: Mapping[str, Tensor],
    live: _Live,
) -> Tensor:
    """Directions in which the weights around a piece move: ``X W + W Y`` and what goes with it."""
    count = len(next(iter(solution.values.values())))
    total = torch.zeros(len(live.empty), count, dtype=torch.float64)
    names = list(parameters)
    for unknown, values in solution.values.items():
        if unknown.kind == "free":
            name = str(unknown.where)
            total += live.flat({name: values.reshape(count, *parameters[name].shape)}, names, count)
            continue
        use = uses[int(unknown.where)]
        parts = _of_layer(use, _change(use, unknown.kind, values), parameters)
        total += live.flat(parts, names, count)
    return total


def _change(use: RecordedUse, kind: str, values: Tensor) -> Tensor:
    """What one unknown does to a layer: ``(count, groups, m, c k + bias)``."""
    layer: Layer = use.layer
    groups, m, c, k = layer.slices
    weight = layer.to_slices(layer.weight.detach()).reshape(groups, m, c, k)
    weight = weight.to("cpu", torch.float64)
    bias = weight.new_zeros(groups, m)
    if use.has_bias and layer.bias is not None:
        bias = layer.bias.detach().to(weight).reshape(groups, m)
    change = weight.new_zeros(len(values), groups, m, c, k)
    shift = weight.new_zeros(len(values), groups, m)
    if kind in {"X", "Xd"}:
        x = values.reshape(-1, groups, m, m) if kind == "X" else _diagonal(values, groups)
        change = torch.einsum("ngab,gbck->ngack", x, weight)
        shift = torch.einsum("ngab,gb->nga", x, bias)
    elif kind in {"Y", "Yd"}:
        y = values.reshape(-1, groups, c, c) if kind == "Y" else _diagonal(values, groups)
        change = torch.einsum("gmak,ngac->ngmck", weight, y)
    elif kind == "x":
        shift = values.reshape(-1, groups, m)
    else:
        shift = torch.einsum("gmck,ngc->ngm", weight, values.reshape(-1, groups, c))
    parts = [change.flatten(3)] + ([shift[..., None]] if use.has_bias else [])
    return torch.cat(parts, dim=3)


def _diagonal(values: Tensor, groups: int) -> Tensor:
    return torch.diag_embed(values.reshape(len(values), groups, -1))
