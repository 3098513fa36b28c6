"""The autograd graph: a walk of its nodes, and gradients for many cotangents at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def graph_nodes(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """Yield every node of the graph behind some tensors once, leaves' accumulators included.

    A node is what :attr:`torch.Tensor.grad_fn` holds (``torch.autograd.graph.Node``, and attributes
    of its own for each operation); tensors without a graph are passed over.
    """
    waiting = [x.grad_fn for x in tensors if x.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


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
