"""The batch bound: of the Hessian of any network and loss, at live weights, on given samples.

Let the parameters ``W`` of a layer act linearly on activations: ``z_n = W a_n`` for every
sample (and every place of a convolution), and let ``g_n = ∂ℓ/∂z_n``. A direction ``V`` changes
the gradient of any parameter, of its own layer too, through ``V a_n``, the change of what the
rest of the network receives; that of a parameter before the layer also through ``Vᵀ g_n``, in
the chain rule ``(∂a_n/∂θ)ᵀ Wᵀ g_n``. Nothing else about ``V`` matters, and nothing is assumed
about the rest of the network or the loss. So the layer's column block of ``H`` has at most the
rank of ``V ↦ (V a_n, Vᵀ g_n)_n``: with ``α`` the rank of the (unfolded) inputs over the batch
and ``β`` that of the adjoint patches of the signals,

    rank(H) ≤ Σ_l min(p_l, m α + c β - o, m α + min(c β, E))

with ``E`` the parameters used before the layer, ``o = α β`` for a linear layer (``a`` and ``g``
both see ``gᵀ V a``). Biases: a 1 appended to the inputs, and ``o = (α - 1) β``. Behind a softmax
only differences of outputs count: ``m - 1``. Row by row, only positions count that the rest of the
network reads, so that ``m α`` is ``Σ_i α_i``; and the overlap of convolutions is computed where
that is cheap (:mod:`lightning_hessrank.bounds.columns`). Several uses: the sum. Parameters that
enter in another way count in full, which is a bound whatever they do. That no use was missed is
checked by the gradient: it must be the sum over the uses.

The parts, with outputs ``F``: the columns of ``J`` see ``V a_n`` only, hence ``rank(H_o) ≤ Σ_l Σ_i
α_i``, and at most the rank of the loss's curvature by the outputs (``N K'``), or of what a layer
that all goes through lets pass (:func:`~lightning_hessrank.bounds.columns.cut_rank`). The
functional part
is the Hessian of ``⟨r, F⟩`` with the residuals ``r`` held fixed, so the argument holds for that
loss; positions that its gradient is affine in (the last layer's, those of a piecewise linear
unit that nothing multiplies) do not count in ``α``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from lightning_hessrank.bounds.columns import cut_rank, use_rank
from lightning_hessrank.bounds.live import LiveBatch, read_batch
from lightning_hessrank.network.function import Evaluation, layer_name, layers_of
from lightning_hessrank.results import (
    PARTS,
    BoundNotAvailableError,
    LayerBound,
    Part,
    RankBound,
)


def read_batches(
    evaluations: Sequence[Callable[[], Evaluation]],
    parameters: Mapping[str, Tensor],
    weights: Sequence[float] | None = None,
) -> list[LiveBatch]:
    """Run every batch of a loss, a weighted sum, and read what its bounds need.

    Args:
        evaluations: each runs the network on one batch and returns the scalar loss and the
            outputs, in float64, with their graph; the same values at every call.
        parameters: trainable parameters by qualified name.
        weights: of the batches; ``None``: all alike.

    Raises:
        BoundNotAvailableError: the loss is not a function of the parameters, or the batches use
            the layers in different orders.
        NonFiniteError: the loss, or an input or signal of a layer, is nan or inf.
    """
    weights = [1.0] * len(evaluations) if weights is None else weights
    batches = [
        replace(read_batch(evaluate, parameters), weight=weight)
        for evaluate, weight in zip(evaluations, weights, strict=True)
    ]
    counts = {len(batch.uses) for batch in batches}
    if len(counts) > 1:
        raise BoundNotAvailableError(
            "the batches run through the network in different ways "
            f"({' and '.join(map(str, sorted(counts)))} linear operations), so that their "
            "activations cannot be joined layer by layer"
        )
    return batches


def batch_bound_of(
    batches: Sequence[LiveBatch],
    parameters: Mapping[str, Tensor],
    num_samples: int | None = None,
) -> RankBound:
    """Bound the rank of the Hessian at the weights as they are.

    Args:
        batches: what was read of them.
        parameters: trainable parameters by qualified name.
        num_samples: in all batches, for the table.
    """
    p = sum(x.numel() for x in parameters.values())
    bounds = [
        _layer_bound(layer, names, batches, parameters)
        for layer, names in layers_of(parameters).items()
    ]
    total = min(p, sum(x.total or 0 for x in bounds))
    outer = functional = None
    if _has_parts(batches):
        seen = sum(batch.curved_outputs or 0 for batch in batches)
        joined = [[batch.uses[i] for batch in batches] for i in range(len(batches[0].uses))]
        cuts = [rank for uses in joined if (rank := cut_rank(uses)) is not None]
        outer = min(p, seen, sum(x.outer or 0 for x in bounds), *cuts)
        functional = min(p, sum(x.functional for x in bounds))
        if all(batch.passes_through for batch in batches):
            total = min(total, outer + functional)
    return RankBound(
        total=total,
        outer=outer,
        functional=functional,
        layers=tuple(bounds),
        num_parameters=p,
        kind="batch",
        is_theorem=True,
        reason=_reason(_uncovered(batches)),
        num_samples=num_samples,
    )


def _layer_bound(
    layer: str,
    names: Sequence[str],
    batches: Sequence[LiveBatch],
    parameters: Mapping[str, Tensor],
) -> LayerBound:
    uncovered = _uncovered(batches)
    # Where they enter is unknown: before every layer, for all that can be said.
    unseen = frozenset[str]().union(*(batch.unseen for batch in batches))
    size = sum(parameters[name].numel() for name in names)
    full = sum(parameters[name].numel() for name in names if name in uncovered)
    ranks: dict[Part, int] = {}
    for part in PARTS if _has_parts(batches) else PARTS[:1]:
        rank = full
        for i, live in enumerate(batches[0].uses):
            if live.use.names & (set(names) - uncovered):
                before = sum(parameters[x].numel() for x in live.use.earlier | unseen)
                rank += use_rank([batch.uses[i] for batch in batches], part, before)
        ranks[part] = min(size, rank)
    functional = ranks.get("functional", ranks["total"])
    return LayerBound(layer, size, functional, ranks.get("outer"), ranks["total"])


def _uncovered(batches: Sequence[LiveBatch]) -> frozenset[str]:
    return frozenset[str]().union(*(batch.uncovered for batch in batches))


def _has_parts(batches: Sequence[LiveBatch]) -> bool:
    return all(batch.curved_outputs is not None for batch in batches)


def _reason(uncovered: frozenset[str]) -> str:
    text = "Holds for the network itself, at these weights and on these samples"
    if not uncovered:
        return text + "."
    names = ", ".join(sorted({layer_name(name) for name in uncovered}))
    return f"{text}; counted in full, since not linear maps of an activation: {names}."
