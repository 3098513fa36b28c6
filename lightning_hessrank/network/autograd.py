"""The autograd graph: a walk of its nodes, and gradients for many cotangents at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Edge = tuple[Any, int]
"""A node of the graph (what :attr:`torch.Tensor.grad_fn` holds), and the number of its output."""


def graph_edges(tensors: Iterable[Tensor], stops: Iterable[Tensor] = ()) -> Iterator[Edge]:
    """Yield every edge of the graph behind some tensors once, those to leaves included.

    Args:
        tensors: where the walk begins; those without a graph are passed over.
        stops: the walk does not go through these.
    """
    closed = {(x.grad_fn, x.output_nr) for x in stops}
    waiting: list[Edge] = [(x.grad_fn, x.output_nr) for x in tensors]
    seen, expanded = set(closed), set()
    while waiting:
        edge = waiting.pop()
        if edge[0] is None or edge in seen:
            continue
        seen.add(edge)
        yield edge
        if edge[0] not in expanded:
            expanded.add(edge[0])
            waiting.extend(edge[0].next_functions)


def graph_nodes(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """Yield every node of the graph behind some tensors once, leaves' accumulators included.

    They have attributes of their own for each operation (``torch.autograd.graph.Node``).
    """
    seen = set()
    for node, _ in graph_edges(tensors):
        if node not in seen:
            seen.add(node)
            yield node


def pull_back(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    batched: bool = True,
) -> list[Tensor]:
    """Return ``cotangentsᵀ · ∂outputs/∂inputs`` for cotangents with a leading batch dimension.

    Args:
        outputs: with a graph, which is kept.
        inputs: that the graph was built from.
        cotangents: one for each output, shape ``(k, *output.shape)``.
        batched: all ``k`` at once through ``vmap``, which some operations do not support, or one
            after the other.

    Returns:
        For each input shape ``(k, *input.shape)``, zeros where no output depends on it.
    """
    k = len(cotangents[0])
    pairs = [(y, v) for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad]
    grads: Sequence[Tensor | None] = (None,) * len(inputs)
    if pairs:
        ys, vs = zip(*pairs, strict=True)
        grads = _batched(ys, inputs, vs) if batched else _looped(ys, inputs, vs)
    return [
        x.new_zeros(k, *x.shape) if g is None else g for g, x in zip(grads, inputs, strict=True)
    ]


def pull_back_somehow(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> list[Tensor]:
    """Do :func:`pull_back` batched, or in a loop where an operation does not support ``vmap``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return pull_back(outputs, inputs, cotangents)
    except (RuntimeError, UserWarning):
        return pull_back(outputs, inputs, cotangents, batched=False)


def _batched(
    ys: Sequence[Tensor], inputs: Sequence[Tensor], vs: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    return torch.autograd.grad(
        ys, inputs, vs, retain_graph=True, allow_unused=True, is_grads_batched=True
    )


def _looped(
    ys: Sequence[Tensor], inputs: Sequence[Tensor], vs: Sequence[Tensor]
) -> list[Tensor | None]:
    results: list[Sequence[Tensor | None]] = [
        torch.autograd.grad(ys, inputs, [v[i] for v in vs], retain_graph=True, allow_unused=True)
        for i in range(len(vs[0]))
    ]
    return [
        None if grads[0] is None else torch.stack([g for g in grads if g is not None])
        for grads in zip(*results, strict=True)
    ]
