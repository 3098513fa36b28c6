"""The autograd graph: a walk along its edges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

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
