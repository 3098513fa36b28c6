"""The dense Hessian of layered networks from derivatives by the outputs of layers, per sample.

Weights act through the layers' outputs ``z_l = W_l P_l(a_l)``, with ``P`` the patches of the input
(a 1 appended for the bias). Let ``Z_n = ∂²ℓ_n/∂z∂z`` be the Hessian of sample ``n``'s loss by
changes added to these outputs, ``δ_n = ∂ℓ_n/∂z``, and ``V, V'`` changes of the weights. By the
product rule, ``V_m P_m(a_m)`` changes with ``a_m`` too, so

    H[V, V'] = Σ_n Z_n[V P, V' P] + T_n[V, V'] + T_n[V', V]   with
    T_n[V, V'] = Σ_{l<m} ⟨δ_m, V_m P_m(∂a_m/∂z_l · V'_l P_l)⟩

``Z_n`` splits like ``H`` does: its outer part comes from one backward pass an output, ``∂f/∂z``;
its functional part from one product for each number in ``z``, and vanishes where the network is
piecewise linear in ``z``. As samples do not interact, one pass over the batch serves all of them.

Two designs were weighed. (a) Columns of ``H`` from products with unit vectors, for every parameter
(:mod:`lightning_hessrank.hessian.dense`). It needs no structure at all. (b) This one. Autograd
works for every number in ``z`` and ``a`` of a sample, mostly far fewer than parameters, and mostly
differentiates once; the rest are matrix products at the machine's speed. Measured by ``python -m
tests.benchmarks.engine shortcuts`` (ReLU, one thread of an AMD EPYC): an MLP with 5,018 parameters
2.0, a CNN with 2,886 1.8 times as fast. (b) is used where it takes fewer passes, (a) for the rest.

That samples do not interact, and that weights act through the layers seen and nowhere else, is not
assumed: the caller compares the result with true products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from lightning_hessrank.hessian.blocks import Block, SampledLayer, contract, make_block
from lightning_hessrank.hessian.graph import Graph
from lightning_hessrank.hessian.root import Root, outputs_per_sample, root_of_loss
from lightning_hessrank.network.unfold import unfold
from lightning_hessrank.results import Part

#: Bytes that the intermediate results of one step may fill, so that they stay near the processor.
CHUNK_BYTES = 2**24


class SampleHessian:
    """A part of one batch's Hessian between the parameters of some layers, block by block."""

    def __init__(self, graph: Graph, layers: Sequence[SampledLayer], part: Part) -> None:
        """Remember what there is; the output must have few numbers a sample.

        Args:
            graph: of the evaluation in which the layers were recorded.
            layers: in the order of their calls.
            part: which part.
        """
        self._graph, self._layers, self._part = graph, layers, part
        self._outputs = [x.output for x in layers]
        self._passes = 0 if part == "functional" else outputs_per_sample(graph) or 0
        """For the outer part, at most."""
        self._itemsize = self._outputs[0].itemsize

    @cached_property
    def _source(self) -> Sequence[Tensor]:
        """``δ`` with a graph; not for the outer part."""
        return () if self._part == "outer" else self._graph.residual_gradient(self._outputs)

    @cached_property
    def _bent(self) -> list[bool]:
        """Whether ``δ_i`` depends on ``z_1 … z_i``; random combinations tell, almost surely."""
        pull_back, outputs = self._graph.batching.pull_back, self._outputs
        vectors = [_random(x, seed) for seed, x in enumerate(outputs)]
        if not self._source or not _any(pull_back(self._source, outputs, vectors)):
            return [False] * len(outputs)
        return [
            _any(pull_back([source], outputs[: i + 1], [vectors[i]]))
            for i, source in enumerate(self._source)
        ]

    @property
    def cost(self) -> int:
        """What the blocks take, in products with the Hessian of one parameter's column.

        A pass that differentiates once counts as one, a pass that does so twice (with unit vectors
        in ``z``) as three: so measured on networks with ReLU and tanh.
        """
        bent = sum(x.outputs for x, b in zip(self._layers, self._bent, strict=True) if b)
        inputs = 0 if self._part == "outer" else sum(x.inputs for x in self._layers[1:])
        return 3 * bent + inputs + self._passes

    @property
    def bytes(self) -> int:
        """Memory that the blocks take, beside the graph and the matrix; from shapes alone."""
        layers, passes = self._layers, self._passes
        kept = passes * sum(x.outputs + x.size * (x.positions > passes) for x in layers)
        kept += sum(2 * x.positions * x.width for x in layers) + 3 * passes**2
        steps = [self._channel_bytes(i) for i in range(len(layers))]
        if self._part != "outer":
            later = range(1, len(layers))
            steps += [self._input_channel_bytes(j) for j in later if layers[j].inputs]
        return layers[0].samples * kept * self._itemsize + max(steps)

    def blocks(self) -> Iterator[tuple[float, Block]]:
        """Yield every block once, to be added and then symmetrised, in no order that matters.

        Each with the share of the work that is done.
        """
        root = root_of_loss(self._graph) if self._passes else None
        later = range(1, len(self._layers) if self._source else 0)
        steps: list[Iterator[Block]] = []
        if root is not None and len(root.signs):
            steps.append(self._outer(root))
        steps += [self._second_derivatives(i) for i, bent in enumerate(self._bent) if bent]
        steps += [self._through_input(j) for j in later if self._layers[j].inputs]
        for number, step in enumerate(steps):
            for block in step:
                yield number / len(steps), block

    def _outer(self, root: Root) -> Iterator[Block]:
        """``Z_n = Σ_j ± g_j g_jᵀ`` with the signals ``g_j`` of the loss's root."""
        pulled = self._graph.pull_back([root.vectors], self._outputs)
        signals = [x.signals(c) for x, c in zip(self._layers, pulled, strict=True)]
        gradients = {
            i: x.gradients(signals[i])
            for i, x in enumerate(self._layers)
            if x.positions > len(root.signs)
        }
        for i, a in enumerate(self._layers):
            for channels in self._chunks(i):
                signed = signals[i][:, :, channels] * root.signs[:, :, None, None]
                for j, b in enumerate(self._layers[: i + 1]):
                    stop = channels.stop if j == i else b.channels
                    if i in gradients and j in gradients:
                        columns = gradients[j][..., : stop * b.width]
                        values = torch.einsum("knr,knq->rq", a.gradients(signed), columns)
                    else:
                        some = signals[j][:, :, :stop]
                        values = contract(a, torch.einsum("knis,knmt->isnmt", signed, some), b)
                    yield make_block(a, channels, b, values)

    def _second_derivatives(self, i: int) -> Iterator[Block]:
        """``Z_n`` from products with unit vectors in the output of layer ``i``."""
        a = self._layers[i]
        for channels in self._chunks(i):
            units = a.units(self._outputs[i], channels)
            pulled = self._pull([self._source[i]], self._outputs[: i + 1], units)
            for b, cotangents in zip(self._layers, pulled, strict=False):
                z = b.signals(cotangents).unflatten(0, (-1, a.positions))
                z = z[..., : channels.stop, :] if b is a else z
                yield make_block(a, channels, b, contract(a, z, b))

    def _through_input(self, j: int) -> Iterator[Block]:
        """``⟨δ_m, V_m P_m(∂a_m/∂z_l · V'_l P_l)⟩`` for layer ``m = j`` and all earlier ones."""
        b, earlier = self._layers[j], self._layers[:j]
        delta = b.signals(self._source[j].detach().unsqueeze(0)).permute(2, 3, 1, 0).flatten(1, 3)
        places = b.layer.places()
        for channels in self._input_chunks(j):
            units = b.units(b.layer.input, channels)
            pulled = self._pull([b.layer.input], self._outputs[:j], units)
            for a, cotangents in zip(earlier, pulled, strict=True):
                if not bool(cotangents.any()):
                    continue
                change = a.gradients(a.signals(cotangents))
                count = channels.stop - channels.start
                patches = unfold(change.unflatten(0, (count, -1)), places, dim=1)
                values = delta @ patches.flatten(2, 3)  # (channels, taps, m, r)
                entries = slice(channels.start * len(places), channels.stop * len(places))
                yield make_block(a, slice(0, a.channels), b, values.permute(3, 2, 0, 1), entries)

    def _chunks(self, i: int) -> Iterator[slice]:
        """Output channels of layer ``i``, a few at a time."""
        return _slices(self._layers[i].channels, self._channel_bytes(i))

    def _channel_bytes(self, i: int) -> int:
        """What one output channel of layer ``i`` takes."""
        a, earlier = self._layers[i], self._layers[: i + 1]
        numbers = max(b.size + b.outputs for b in earlier)
        if self._part != "outer":
            numbers += sum(b.outputs for b in earlier)
        return a.samples * a.positions * numbers * self._itemsize

    def _input_chunks(self, j: int) -> Iterator[slice]:
        """Input channels of layer ``j``, a few at a time."""
        return _slices(self._layers[j].layer.in_channels, self._input_channel_bytes(j))

    def _input_channel_bytes(self, j: int) -> int:
        """What one input channel of layer ``j`` takes."""
        b, earlier = self._layers[j], self._layers[:j]
        places, taps = (n // b.layer.in_channels for n in (b.inputs, b.taps))
        largest = max(a.size for a in earlier)
        numbers = places * (b.inputs + sum(a.outputs for a in earlier) + largest)
        return b.samples * (numbers + taps * b.positions * largest) * self._itemsize

    def _pull(
        self, source: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Tensor
    ) -> list[Tensor]:
        return self._graph.batching.pull_back(source, inputs, [vectors])


def _random(like: Tensor, seed: int) -> Tensor:
    """Return one Gaussian cotangent, with a batch dimension."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *like.shape, generator=generator, dtype=torch.float64).to(like)


def _any(tensors: Sequence[Tensor]) -> bool:
    return any(bool(x.any()) for x in tensors)


def _slices(count: int, each: int) -> Iterator[slice]:
    """Split ``count`` things that take ``each`` bytes."""
    step = max(1, min(count, CHUNK_BYTES // max(each, 1)))
    return (slice(i, min(i + step, count)) for i in range(0, count, step))
