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
both see ``gᵀ V a``), and 0 for convolutions of several taps. Biases: a 1 appended to the
inputs, and ``o = (α - 1) β``. Behind a softmax only differences of outputs count: ``m - 1``.
Several uses: the sum. Parameters that enter in another way count in full, which is a bound
whatever they do. That no use was missed is checked by the gradient: it must be the sum over the
uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hessrank.bounds.inputs import matrix_rank
from lightning_hessrank.network.function import layer_name, layers_of
from lightning_hessrank.network.layers import Layer
from lightning_hessrank.network.losses import ignores_shifts
from lightning_hessrank.network.recorder import LayerRecorder, RecordedUse
from lightning_hessrank.results import (
    BoundNotAvailableError,
    LayerBound,
    NonFiniteError,
    RankBound,
)

#: Patches wider than this are not looked into: their width is their rank.
MAX_WIDTH = 1200
#: Multiply-adds that one rank may take; beyond, the number of columns or rows is the bound.
BUDGET = 20_000_000_000
#: Entries of unfolded columns held at a time.
BLOCK = 20_000_000
#: Relative disagreement of gradients beyond which a use must have been missed.
TOLERANCE = 1e-8


def live_batch_bound(
    evaluations: Sequence[Callable[[], Tensor]],
    parameters: Mapping[str, Tensor],
    num_samples: int | None = None,
) -> RankBound:
    """Bound the rank of the Hessian of a (weighted) sum of losses at the weights as they are.

    Args:
        evaluations: each runs the network on one batch and returns the scalar loss, in float64,
            with its graph; the same value at every call.
        parameters: trainable parameters by qualified name.
        num_samples: in all batches, for the table.

    Raises:
        BoundNotAvailableError: the loss is not a function of the parameters, or the batches use
            the layers in different orders.
        NonFiniteError: the loss, or an input or signal of a layer, is nan or inf.
    """
    records = [_record(evaluate, parameters) for evaluate in evaluations]
    counts = {len(record.uses) for record in records}
    if len(counts) > 1:
        raise BoundNotAvailableError(
            "the batches run through the network in different ways "
            f"({' and '.join(map(str, sorted(counts)))} linear operations), so that their "
            "activations cannot be joined layer by layer"
        )
    uncovered = frozenset().union(*(record.uncovered for record in records))
    # Where they enter is unknown: before every layer, for all that can be said.
    unseen = frozenset().union(*(record.unseen for record in records))
    bounds = []
    for layer, names in layers_of(parameters).items():
        size = sum(parameters[name].numel() for name in names)
        rank = sum(parameters[name].numel() for name in names if name in uncovered)
        places = [
            i for i, use in enumerate(records[0].uses) if use.names & (set(names) - uncovered)
        ]
        for i in places:
            uses = [(record.uses[i], record.signals[i]) for record in records]
            before = uses[0][0].earlier | unseen
            rank += _use_rank(uses, sum(parameters[name].numel() for name in before))
        bounds.append(LayerBound(layer, size, min(size, rank)))
    p = sum(x.numel() for x in parameters.values())
    return RankBound(
        total=min(p, sum(bound.functional for bound in bounds)),
        outer=None,
        functional=None,
        layers=tuple(bounds),
        num_parameters=p,
        kind="batch",
        is_theorem=True,
        reason=_reason(uncovered),
        num_samples=num_samples,
    )


def _reason(uncovered: frozenset[str]) -> str:
    text = "Holds for the network itself, at these weights and on these samples"
    if not uncovered:
        return text + "."
    names = ", ".join(sorted(layer_name(name) for name in uncovered))
    return f"{text}; counted in full, since not linear maps of an activation: {names}."


@dataclass(frozen=True, eq=False)
class _Record:
    """One batch: linear uses, the signals at their outputs, and parameters used otherwise."""

    uses: list[RecordedUse]
    signals: list[Tensor]
    uncovered: frozenset[str]
    """Parameters with a use that is not linear in an activation."""
    unseen: frozenset[str]
    """Those of them that were never seen in an operation."""


def _record(evaluate: Callable[[], Tensor], parameters: Mapping[str, Tensor]) -> _Record:
    recorder = LayerRecorder(parameters)
    with torch.enable_grad(), recorder:
        loss = evaluate()
    if not loss.requires_grad:
        raise BoundNotAvailableError(
            "the loss does not depend on any parameter, so there is no Hessian to bound"
        )
    uses = [use for use in recorder.finish() if use.is_linear]
    at = [*(use.output for use in uses), *parameters.values()]
    grads = torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)
    signals = [
        torch.zeros_like(use.output) if g is None else g
        for use, g in zip(uses, grads, strict=False)
    ]
    _check_finite(loss, uses, signals)
    for use in uses:
        use.behind_softmax = use.behind_softmax and ignores_shifts(loss, use.output, 1, parameters)
    explained = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for use, signal in zip(uses, signals, strict=True):
        for name, part in _direct_gradients(use, signal, parameters).items():
            explained[name] += part
    uncovered = set()
    for (name, p), g in zip(parameters.items(), grads[len(uses) :], strict=True):
        gradient = torch.zeros_like(p) if g is None else g
        size = max(float(gradient.abs().max()), float(explained[name].abs().max()))
        seen = any(name in use.names for use in uses)
        unseen = name in recorder.elsewhere or (g is not None and not seen)
        if unseen or float((gradient - explained[name]).abs().max()) > TOLERANCE * size:
            uncovered.add(name)
    return _Record(uses, signals, frozenset(uncovered), frozenset(uncovered) - recorder.touched)


def _check_finite(loss: Tensor, uses: Sequence[RecordedUse], signals: Sequence[Tensor]) -> None:
    """Raise :class:`NonFiniteError`, with the first layer forwards or backwards that shows it."""
    inputs = [(use, "input", use.layer.input) for use in uses]
    gradients = [
        (use, "gradient at the output", signal) for use, signal in zip(uses, signals, strict=True)
    ]
    for use, what, x in (*inputs, *reversed(gradients)):
        bad = int((~torch.isfinite(x.detach())).sum()) if x.layout == torch.strided else 0
        if bad:
            raise NonFiniteError(
                f"the {what} of layer '{layer_name(min(use.names))}' is not finite ({bad} of "
                f"{x.numel()} values): look at the weights and the data"
            )
    if not bool(torch.isfinite(loss)):
        raise NonFiniteError(f"the loss is not finite ({float(loss.detach())}): look at the data")


def _direct_gradients(
    use: RecordedUse, signal: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients that this one use contributes to its parameters."""
    layer = use.layer
    leaves = [layer.weight.detach().requires_grad_()]
    with torch.enable_grad():
        z = layer.apply(layer.input.detach(), leaves[0])
        if layer.bias is not None:
            leaves.append(layer.bias.detach().requires_grad_())
            z = layer.add_bias(z, leaves[1])
    parts = torch.autograd.grad(z, leaves, signal)
    ends = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    pairs = [(x, g) for x, g in zip(ends, parts, strict=True) if x.requires_grad]
    names = sorted(use.names)
    grads = torch.autograd.grad(
        [x for x, _ in pairs],
        [parameters[name] for name in names],
        [g for _, g in pairs],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(names, grads, strict=True))


def _use_rank(batches: Sequence[tuple[RecordedUse, Tensor]], before: int) -> int:
    """Rank of ``V ↦ (V a_n, Vᵀ g_n)``, at most, over all batches; ``before``: ``E``."""
    use = batches[0][0]
    groups, m, c, k = use.layer.slices
    biased = use.has_bias
    constant = int(biased)

    def patches(layer: Layer, a: Tensor) -> Tensor:
        columns = layer.patches(a)
        n, *_, positions = columns.shape
        return torch.cat([columns, columns.new_ones(n, groups, constant, positions)], dim=2)

    inputs = [(u.layer, u.layer.input) for u, _ in batches]
    signals = [(u.layer, g) for u, g in batches]
    outputs = sum(g.numel() for _, g in batches) // (groups * m)
    places = sum(a.numel() for _, a in inputs) // (groups * c)
    alphas = _ranks(inputs, patches, (groups, c * k + constant), outputs)
    betas = _ranks(signals, Layer.adjoint_patches, (groups, m * k), places)
    rows = m - 1 if groups == 1 and all(u.behind_softmax for u, _ in batches) else m
    total, own, others = 0, 0, 0
    for alpha, beta in zip(alphas, betas, strict=True):
        overlap = max(0, alpha - biased) * beta if k == 1 else 0
        total += min(m * (c * k + biased), rows * alpha + c * beta - overlap)
        own += rows * alpha
        others += c * beta
    return min(total, own + min(others, before))


def _ranks(
    batches: Sequence[tuple[Layer, Tensor]],
    unfold: Callable[[Layer, Tensor], Tensor],
    shape: tuple[int, int],
    places: int,
) -> list[int]:
    """Rank per group of the unfolded columns of all batches, at most.

    Args:
        batches: a layer and what is unfolded with it.
        unfold: gives columns, shape ``(N, groups, width, places)``.
        shape: ``(groups, width)``.
        places: number of columns in all batches.
    """
    groups, width = shape
    if width > MAX_WIDTH or groups * width * width * places > BUDGET:
        return [min(width, places)] * groups
    generator = torch.Generator().manual_seed(0)
    # A generic mixture of the columns, a little wider than their rank can be, has their rank.
    mixed = min(places, width + 16)
    total = torch.zeros(groups, width, mixed, dtype=torch.float64)
    per_sample = max(1, width * places // sum(max(1, len(x)) for _, x in batches))
    for layer, whole in batches:
        step = max(1, BLOCK // per_sample) if layer.has_samples else max(1, len(whole))
        for x in whole.detach().split(step):
            columns = unfold(layer, x).to("cpu", torch.float64).movedim(0, -1).flatten(2)
            weights = torch.randn(columns.shape[2], mixed, generator=generator, dtype=torch.float64)
            total += columns @ weights
    return [matrix_rank(x) for x in total]
