"""Layers sample by sample, and the blocks of the Hessian between two of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.hessian.graph import Graph
from lightning_hessrank.network.recorder import RecordedUse


class SampledLayer:
    """A use of a layer without groups, and its patches."""

    def __init__(self, use: RecordedUse, wanted: Collection[int]) -> None:
        """Look at shapes only; ``wanted``: ids of the parameters that rows are asked for."""
        self.layer = layer = use.layer
        self.output = use.output
        self.weight = layer.weight if id(layer.weight) in wanted else None
        self.bias = layer.bias if id(layer.bias) in wanted else None
        _, self.channels, columns, taps = layer.slices
        self.taps = 0 if self.weight is None else columns * taps
        """Numbers of the weight for each output channel."""
        self.width = self.taps + (self.bias is not None)
        self.samples, _, self.positions = layer.images(use.output).shape

    @cached_property
    def patches(self) -> Tensor:
        """Shape ``(positions, N, width)``, with a one at the end for the bias."""
        patches = [self.layer.patches().squeeze(1)] if self.taps else []
        if self.bias is not None:
            patches.append(self.output.new_ones(self.samples, 1, self.positions))
        return torch.cat(patches, dim=1).permute(2, 0, 1).contiguous()

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.channels * self.width

    @property
    def outputs(self) -> int:
        """Numbers in the layer's output for each sample."""
        return self.channels * self.positions

    @property
    def inputs(self) -> int:
        """Numbers in its input for each sample, where these depend on earlier layers."""
        return self.layer.input[0].numel() if self.layer.input.requires_grad and self.taps else 0

    def signals(self, cotangents: Tensor) -> Tensor:
        """Bring cotangents ``(k, *output.shape)`` into ``(k, N, channels, positions)``."""
        return self.layer.signals(cotangents).squeeze(2)

    def gradients(self, signals: Tensor) -> Tensor:
        """Gradient of every sample for signals in some channels, shape ``(k, N, r)``."""
        if self.positions == 1:
            return (signals * self.patches[0, :, None, :]).flatten(2)
        return torch.einsum("knms,snc->knmc", signals, self.patches).flatten(2)

    def units(self, like: Tensor, channels: slice) -> Tensor:
        """Cotangents of ``like``, the layer's input or output: one for every number in a channel.

        Of all samples at once; shape ``(channels * places, *like.shape)``.
        """
        shape = self.layer.channels_first(like).shape
        count, places = channels.stop - channels.start, shape[2:].numel()
        units = like.new_zeros(count, places, shape[0], shape[1], places)
        c, s = torch.arange(count)[:, None], torch.arange(places)
        units[c, s, :, channels.start + c, s] = 1.0
        images = self.layer.channels_back(units.view(-1, *shape[1:]))
        return images.unflatten(0, (count * places, shape[0]))


class _Strip(NamedTuple):
    """The share that one parameter has in some entries of some channels of a layer."""

    first: int
    """Row of the matrix."""
    channels: int
    width: int
    """Rows for each channel."""
    own: slice
    """Those of them that are meant."""
    entries: slice
    """Where they are among the entries."""


class Block(NamedTuple):
    """A summand of the Hessian's block between two layers."""

    rows: SampledLayer
    channels: slice
    """Output channels of ``rows``."""
    columns: SampledLayer
    entries: slice
    """Of the width of ``columns``."""
    values: Tensor
    """Shape ``(channels, width of rows, channels of columns, entries)``; within one layer the
    channels of the columns end where those of the rows do: the rest follows from symmetry."""

    def add_to(self, matrix: Tensor, start: Mapping[int, int], weight: float) -> None:
        """Add to one triangle what :func:`..operator.symmetrise_` spreads.

        That takes the mean of a matrix and its transpose, so that all but what is between the same
        channels of the same layer is added twice.

        Args:
            matrix: will be the Hessian.
            start: id of a parameter -> number of its first row.
            weight: of the batch.
        """
        whole = slice(0, self.rows.width)
        spans = [(slice(0, self.values.shape[2]), 2.0)]
        if self.rows is self.columns:
            spans = [(slice(0, self.channels.start), 2.0), (self.channels, 1.0)]
        for span, times in spans:
            for a in _strips(self.rows, self.channels, whole, start):
                for b in _strips(self.columns, span, self.entries, start):
                    values = self.values[:, a.entries, span, b.entries]
                    _view(matrix, a, b).add_(values, alpha=times * weight)


def _strips(
    layer: SampledLayer, channels: slice, entries: slice, start: Mapping[int, int]
) -> Iterator[_Strip]:
    owners = ((layer.weight, 0, layer.taps), (layer.bias, layer.taps, layer.width))
    for parameter, low, high in owners:
        first, last = max(low, entries.start), min(high, entries.stop)
        if parameter is not None and first < last and channels.start < channels.stop:
            yield _Strip(
                start[id(parameter)] + channels.start * (high - low),
                channels.stop - channels.start,
                high - low,
                slice(first - low, last - low),
                slice(first - entries.start, last - entries.start),
            )


def _view(matrix: Tensor, a: _Strip, b: _Strip) -> Tensor:
    block = matrix.narrow(0, a.first, a.channels * a.width).narrow(1, b.first, b.channels * b.width)
    block = block.unflatten(1, (b.channels, b.width)).unflatten(0, (a.channels, a.width))
    return block[:, a.own, :, b.own]


def make_block(
    rows: SampledLayer,
    channels: slice,
    columns: SampledLayer,
    values: Tensor,
    entries: slice | None = None,
) -> Block:
    """Make a block of values that hold these numbers in this order; ``entries``: all of them."""
    entries = slice(0, columns.width) if entries is None else entries
    count = channels.stop - channels.start
    values = values.reshape(count, rows.width, -1, entries.stop - entries.start)
    return Block(rows, channels, columns, entries, values)


def contract(a: SampledLayer, z: Tensor, b: SampledLayer) -> Tensor:
    """``Σ_n Pᵀ z_n P`` for ``z`` of shape ``(channels of a, positions, N, channels, positions)``.

    Returns:
        Shape ``(channels of a, width of a, numbers of b)``.
    """
    if b.positions == 1:
        right = z * b.patches[0, :, None]
    else:
        right = torch.einsum("ksnmt,tnd->ksnmd", z, b.patches)
    return a.patches.flatten(0, 1).T @ right.flatten(3).flatten(1, 2)


def sampled_layers(
    graph: Graph, uses: Sequence[RecordedUse], wanted: Collection[int]
) -> list[SampledLayer]:
    """Layers that own parameters with wanted ids and see each sample.

    Without groups, with a known geometry, and with weights in the order of their slices.
    """
    samples = {f.shape[0] if f.ndim else None for f in graph.outputs}
    return [
        SampledLayer(use, wanted)
        for use in uses
        if use.owns(wanted)
        and use.layer.geometry is not None
        and use.layer.slices.groups == 1
        and use.layer.is_row_major
        and {use.output.shape[0]} == samples
    ]
