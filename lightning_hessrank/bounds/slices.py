"""Patch slices and adjoint slices of every layer, sampled by forward-mode derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lightning_hessrank.bounds.inputs import flatten
from lightning_hessrank.bounds.model import LinearModel
from lightning_hessrank.bounds.spans import GrowingSpan
from lightning_hessrank.bounds.trace import LayerUse, Trace, Weights
from lightning_hessrank.network.layers import Layer

#: More passes than this are not made; spans that still grow then count with their caps.
MAX_PASSES = 64
#: Spans with the slices of the Jacobian in them are not looked into beyond this width.
MAX_FULL_WIDTH = 400
#: Multiply-adds that all passes may take: half a minute on two cores.
BUDGET = 100_000_000_000


class Row(NamedTuple):
    """Inputs and cotangents of a use, with their changes along a direction in weight space."""

    a: Tensor
    g: Tensor
    a_tangent: Tensor | None = None
    g_tangent: Tensor | None = None


class UseSpans:
    """What is sampled for one use with a matrix."""

    def __init__(self, use: LayerUse, layer: Layer, model: LinearModel, passes: int) -> None:
        self.use, self.layer = use, layer
        self.slices = [layer.slices] if use.folded is None else [layer.slices, use.folded]
        self.has_bias = bool(use.biases)
        samples, n = max(1, model.residual_samples()), layer.input.shape[0]
        groups, m, c, k = layer.slices

        def span(width: int, places: int, vectors: int) -> GrowingSpan:
            return GrowingSpan(groups, width, places, passes * vectors, model.generator)

        width = c * k + self.has_bias
        places = samples * max(1, use.output.numel() // (n * groups * m))
        self.later = span(width, places, m)
        self.later_full = span(width, width, _full(width, 2 * m))
        self.earlier = []
        self.earlier_full = []
        for s in self.slices:
            width = s.rows * s.taps
            places = samples * max(1, layer.input.numel() // (n * groups * s.columns))
            self.earlier.append(span(width, places, s.columns))
            self.earlier_full.append(span(width, width, _full(width, 2 * s.columns)))

    @property
    def spans(self) -> list[GrowingSpan]:
        """All of them."""
        return [self.later, self.later_full, *self.earlier, *self.earlier_full]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to sample."""
        return all(span.complete for span in self.spans)

    @property
    def full(self) -> list[GrowingSpan]:
        """Those with the slices of the Jacobian in them."""
        return [self.later_full, *self.earlier_full]

    def add(self, rows: Row, jacobian: Row | None) -> None:
        """Add the slices of one row of each kind: of the functional Hessian, of the Jacobian."""
        groups = self.layer.slices.groups
        if rows.g_tangent is None:  # nothing later to see it
            self.later.close([0] * groups)
        if rows.a_tangent is None:  # nothing earlier
            for span in self.earlier:
                span.close([0] * groups)
        want_later = not (self.later.complete and self.later_full.complete)
        want_earlier = not all(x.complete for x in (*self.earlier, *self.earlier_full))
        full = None
        if jacobian is not None and not all(x.complete for x in self.full):
            full = self._gradient(jacobian.a, jacobian.g)
        if want_later:
            patches = []
            if rows.g_tangent is not None:
                gradient = self._gradient(rows.a, rows.g_tangent)
                patches.append(self._patches(gradient, rows.g_tangent))
                self.later.add(patches[0])
            if full is not None and jacobian is not None:
                patches.append(self._patches(full, jacobian.g))
                self.later_full.add(torch.cat(patches, dim=1))
        if want_earlier:
            gradients = []
            if rows.a_tangent is not None:
                gradients.append(self._gradient(rows.a_tangent, rows.g))
            gradients += [] if full is None else [full]
            for i in range(len(self.slices)):
                slices = [self._adjoints(gradient, i) for gradient in gradients]
                if rows.a_tangent is not None:
                    self.earlier[i].add(slices[0])
                if full is not None:
                    self.earlier_full[i].add(torch.cat(slices, dim=1))

    def unused(self) -> None:
        """The outputs do not depend on this use."""
        for span in self.spans:
            span.close([0] * len(span.ranks))

    def _gradient(self, a: Tensor, g: Tensor) -> Tensor:
        """Gradient of the weight, shape ``(groups, m, c, k)``, for an input and a cotangent."""
        weight = self.layer.weight.detach().requires_grad_()
        with torch.enable_grad():
            z = self.layer.apply(a.detach(), weight)
        return self.layer.to_slices(torch.autograd.grad(z, weight, g)[0])

    def _patches(self, gradient: Tensor, g: Tensor) -> Tensor:
        """Slices per output channel, with the gradient of the bias as their last entry."""
        groups, m, c, k = self.layer.slices
        rows = gradient.reshape(groups, m, c * k)
        if not self.has_bias:
            return rows
        bias = torch.zeros(groups * m, dtype=g.dtype, device=g.device, requires_grad=True)
        with torch.enable_grad():
            z = self.layer.add_bias(torch.zeros_like(g), bias)
        constant = torch.autograd.grad(z, bias, g)[0]
        return torch.cat([rows, constant.reshape(groups, m, 1)], dim=2)

    def _adjoints(self, gradient: Tensor, view: int) -> Tensor:
        """Slices per input channel, in one of the views of the weight."""
        groups, m, c, k = self.slices[view]
        return gradient.reshape(groups, m, c, k).transpose(1, 2).reshape(groups, c, m * k)


def _full(width: int, vectors: int) -> int:
    """Vectors a pass for the spans that only the total needs: none where they are wide."""
    return vectors if width <= MAX_FULL_WIDTH else 0


@dataclass(frozen=True, eq=False)
class PatchSpans:
    """What was sampled for a network."""

    uses: dict[int, UseSpans]
    inputs: GrowingSpan
    """Span of the gradients of the outputs' derivatives with respect to the inputs."""


def patch_spans(model: LinearModel) -> PatchSpans:
    """Sample the slices of every use until their spans are complete."""
    weights = model.weights()
    layers = [(use, use.layer) for use in model.trace.uses if use.layer is not None]
    passes = min(MAX_PASSES, BUDGET // model.product_cost())
    uses = {use.index: UseSpans(use, layer, model, passes) for use, layer in layers}
    width = model.span.num_samples or model.span.features
    vectors = 2 * passes * max(1, model.residual_samples())
    inputs = GrowingSpan(1, width, model.span.rank, vectors, model.generator)
    if not passes or all(x.complete for x in uses.values()):
        return PatchSpans(uses, inputs)
    samples = model.sample(max(1, model.residual_samples()))
    residuals = model.cotangents(model.surrogate.run(samples, weights).outputs)
    for _ in range(passes):
        if all(x.complete for x in uses.values()):
            break
        wanted = {index for index, span in uses.items() if not span.complete}
        functional, gradients = _tangent_pass(model, weights, samples, residuals, wanted)
        jacobian = {}
        if any(not x.complete for i in wanted for x in uses[i].full):
            jacobian = _jacobian_pass(model, weights, wanted)
        inputs.add(gradients[None])
        for index in wanted:
            if index in functional:
                uses[index].add(functional[index], jacobian.get(index))
            else:
                uses[index].unused()
    return PatchSpans(uses, inputs)


def _tangent_pass(
    model: LinearModel,
    weights: Weights,
    samples: tuple[Tensor, ...],
    residuals: tuple[Tensor, ...],
    wanted: set[int],
) -> tuple[dict[int, Row], Tensor]:
    """Move all weights in one random direction: rows of the functional Hessian, all layers at once.

    By the product rule a row is the weight gradient of the inputs with the change of the
    cotangents (through later layers), plus that of the change of the inputs (through earlier
    ones) with the cotangents. Returns them, and gradients with respect to the inputs.
    """
    rows = {}
    with forward_ad.dual_level():
        trace = model.surrogate.run(samples, weights.moved())
        uses, inputs = _cotangents(trace, residuals, wanted)
        for use, cotangent in uses:
            if use.layer is not None:
                a, a_tangent = forward_ad.unpack_dual(use.layer.input)
                g, g_tangent = forward_ad.unpack_dual(cotangent)
                rows[use.index] = Row(a, g, a_tangent, g_tangent)
        parts = [part for x in inputs for part in [forward_ad.unpack_dual(x)]]
        gradients = [
            flatten([p.primal if kind == 0 else _or_zero(p.tangent, p.primal) for p in parts])
            for kind in (0, 1)
        ]
    return rows, model.span.restrict(torch.cat(gradients))


def _jacobian_pass(model: LinearModel, weights: Weights, wanted: set[int]) -> dict[int, Row]:
    """One random input and output cotangent: a row of the Jacobian."""
    trace = model.surrogate.run(model.sample(1), weights)
    return {
        use.index: Row(use.layer.input, g)
        for use, g in _cotangents(trace, model.cotangents(trace.outputs), wanted)[0]
        if use.layer is not None
    }


def _cotangents(
    trace: Trace, cotangents: tuple[Tensor, ...], wanted: set[int]
) -> tuple[list[tuple[LayerUse, Tensor]], list[Tensor]]:
    """The wanted uses with the gradients at their outputs; and the gradients at the inputs."""
    uses = [use for use in trace.uses if use.index in wanted and use.output.requires_grad]
    at = [*(use.output for use in uses), *trace.inputs]
    grads = torch.autograd.grad(trace.outputs, at, cotangents, allow_unused=True)
    inputs = [
        torch.zeros_like(x) if g is None else g
        for x, g in zip(trace.inputs, grads[len(uses) :], strict=True)
    ]
    return [(use, g) for use, g in zip(uses, grads, strict=False) if g is not None], inputs


def _or_zero(value: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if value is None else value
