"""The linear surrogate of a network: seen, and put in its place, while the user's code runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_hessrank.bounds import operations as ops
from lightning_hessrank.bounds.rules import Call, surrogate_of
from lightning_hessrank.bounds.trace import INPUT, Activation, Run, Trace, Weight, Weights
from lightning_hessrank.network.modes import OrderedMode, Place, name_of
from lightning_hessrank.results import BoundNotAvailableError


@dataclass(frozen=True, eq=False)
class Surrogate:
    """The linear surrogate of a network as a function of inputs and weights.

    Activations and dropout become the identity, a maximum the mean over the same elements, batch
    norm its affine map per channel (with random statistics, so that a bound holds for all), other
    normalisations their affine part. What is left must be multilinear in the inputs and layers.
    """

    forward: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
    parameters: Mapping[str, Tensor]

    def run(self, inputs: Sequence[Tensor], weights: Weights) -> Trace:
        """Run the network's code on ``inputs`` with ``weights`` in the place of its parameters.

        Raises:
            BoundNotAvailableError: an output is not a multilinear function of inputs and layers.
        """
        weights.rewind()
        mode = SurrogateMode(self.parameters, weights)
        with torch.enable_grad():
            leaves = tuple(x.detach().requires_grad_() for x in inputs)
            # Clones: user code may change its inputs in place, which a leaf does not allow.
            copies = mode.run.tag_all(tuple(x.clone() for x in leaves), Activation(INPUT))
            with warnings.catch_warnings(), mode:
                # The user's code sees made-up numbers; what it has to say of them is of no use.
                warnings.simplefilter("ignore")
                outputs = self.forward(copies)
        mode.run.trace.inputs = leaves
        return mode.finish(outputs)


class SurrogateMode(OrderedMode):
    """Sees every function of PyTorch that the network calls, and replaces some."""

    place = Place.READ

    def __init__(self, parameters: Mapping[str, Tensor], weights: Weights) -> None:
        super().__init__()
        self.run = Run(parameters, weights)
        self._parameters = dict(parameters)  # alive, so that their ids stay theirs
        self._substitutes = {id(p): weights.values[name] for name, p in parameters.items()}

    def replaces(self, func: Callable[..., Any]) -> bool:
        """Activations are the identity."""
        return name_of(func) in ops.ACTIVATIONS

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func``, or what stands for it, on other weights than the network's own."""
        args, kwargs = tree_map(lambda x: self._substitutes.get(id(x), x), (args, kwargs))
        call = Call(self.run, func, args, kwargs)
        if call.has_masks and not call.activations and not call.weights:
            return self.run.note_masks(call.plain())
        return surrogate_of(call) if call.activations else self._weights_only(call)

    def _weights_only(self, call: Call) -> Any:
        name, weights, result = call.name, call.weights, call.plain()
        if not weights:
            return result
        divided = name in {"div", "truediv"} and not self.run.is_weight(call.args[1])
        multiple = len(weights) == 1 and (name in {"mul", "rmul"} or divided)
        linear = (name in ops.LINEAR or multiple) and all(w.linear for w in weights)
        polynomial = divided or name in ops.LINEAR | ops.POLYNOMIAL
        computed_by = next((w.computed_by for w in weights if w.computed_by), None)
        tag = Weight(
            frozenset().union(*(w.names for w in weights)),
            linear,
            computed_by if polynomial or computed_by else name,
        )
        if name == "setitem":
            self.run.tag_all(call.args[0], tag)
        return self.run.tag_all(result, tag)

    def finish(self, outputs: tuple[Tensor, ...]) -> Trace:
        """The trace, once the network has returned its outputs."""
        trace = self.run.trace
        trace.outputs = outputs
        sources, own = [], trace.replaced
        for output in outputs:
            tag = self.run.tag_of(output)
            if not isinstance(tag, Activation):
                raise BoundNotAvailableError(
                    "the network's output does not depend on its floating-point inputs through "
                    "operations of PyTorch, so that there is nothing to bound"
                )
            if tag.problem is not None:
                raise BoundNotAvailableError(tag.problem)
            sources.append(tag.source)
            trace.replaced |= tag.replaced
            if len(outputs) == 1:
                trace.softmax_dim, trace.before_softmax = tag.softmax_dim, own | tag.before_softmax
        trace.sources = tuple(sources)
        return trace
