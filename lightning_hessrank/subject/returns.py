"""What the modules of a network return, and which of it is the network's output.

Where a loss is written by hand, no known loss function tells the output. The graph does: going back
from the loss, the first tensors on every way that a module with parameters has returned. If no way
to a parameter goes past them, the loss is a function of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_hessrank.network.autograd import graph_edges
from lightning_hessrank.network.batches import list_tensors, map_tensors
from lightning_hessrank.network.gate import gate


class Returned(NamedTuple):
    """A tensor that a module has returned."""

    call: int
    """Number of the call."""
    number: int
    """Among the tensors that it returned."""
    tensor: Tensor


class ReturnRecorder:
    """While active, remembers what the modules with parameters return.

    Args:
        module: whose parts are watched, itself included.
        gated: numbers of calls whose results get gates.
        watch: told of the inputs and outputs of every call.
    """

    def __init__(
        self,
        module: nn.Module,
        gated: frozenset[int] = frozenset(),
        watch: Callable[[Any, Any], None] = lambda inputs, outputs: None,
    ) -> None:
        self.returned: list[Returned] = []
        self._module = module
        self._gated = gated
        self._watch = watch
        self._calls = 0
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> ReturnRecorder:
        """Watch."""
        with torch._C.DisableTorchFunction():  # a surrogate shows other parameters
            parts = [x for x in self._module.modules() if _is_watched(x)]
        self._handles = [x.register_forward_hook(self._note, with_kwargs=True) for x in parts]
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def _note(self, part: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
        call, self._calls = self._calls, self._calls + 1
        if call in self._gated:
            outputs = map_tensors(outputs, lambda x: gate(x) if x.requires_grad else x)
        self._watch(list_tensors((args, kwargs)), list_tensors(outputs))
        self.returned += [
            Returned(call, i, x)
            for i, x in enumerate(list_tensors(outputs))
            if x.grad_fn is not None and x.ndim > 0  # a scalar is a loss
        ]
        return outputs


def _is_watched(part: nn.Module) -> bool:
    scripted = isinstance(part, torch.jit.ScriptModule)
    return not scripted and any(p.requires_grad for p in part.parameters())


def frontier(loss: Tensor, returned: Sequence[Returned]) -> tuple[Returned, ...]:
    """Return the tensors through which all of the loss depends on parameters, nearest to it.

    Empty where it depends on some parameter in another way. A sample's term of the loss that a
    module returns beside its outputs is passed over: the loss has no curvature in it.
    """
    start = (loss.grad_fn, loss.output_nr)
    returned = [x for x in returned if not _is_term(loss, x, returned)]
    known = {(x.tensor.grad_fn, x.tensor.output_nr): x for x in reversed(returned)}
    known.pop(start, None)
    found: dict[Any, Returned] = {}
    for node, _ in graph_edges([loss], stops=[x.tensor for x in known.values()]):
        if hasattr(node, "variable"):  # a leaf with a gradient
            return ()
        for edge in node.next_functions:
            if edge in known:
                found[edge] = known[edge]
    return tuple(sorted(found.values(), key=lambda x: x[:2]))


def _is_term(loss: Tensor, x: Returned, returned: Sequence[Returned]) -> bool:
    """Whether a tensor is a loss for each sample, made of what its call returned beside it.

    That is, the loss of the step is a weighted sum of its entries.
    """
    if x.tensor.ndim != 1:
        return False
    beside = {
        (y.tensor.grad_fn, y.tensor.output_nr)
        for y in returned
        if y.call == x.call and y.tensor is not x.tensor
    }
    if not any(edge in beside for edge in graph_edges([x.tensor])):
        return False
    (slope,) = torch.autograd.grad(loss, x.tensor, create_graph=True, allow_unused=True)
    return slope is not None and not slope.requires_grad


def entangled(outputs: Sequence[Returned]) -> frozenset[int]:
    """Return the numbers of the calls, if some of the outputs are computed from others."""
    edges = {(x.tensor.grad_fn, x.tensor.output_nr) for x in outputs}
    for x in outputs:
        own = (x.tensor.grad_fn, x.tensor.output_nr)
        if any(edge in edges and edge != own for edge in graph_edges([x.tensor])):
            return frozenset(y.call for y in outputs)
    return frozenset()
