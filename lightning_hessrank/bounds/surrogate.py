"""The linear surrogate of a network: seen, and put in its place, while the user's code runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hessrank.bounds import operations as ops
from lightning_hessrank.bounds.calls import Call
from lightning_hessrank.bounds.trace import INPUT, Activation, Trace, Weight, Weights
from lightning_hessrank.results import BoundNotAvailableError


class Surrogate:
    """The linear surrogate of a network as a function of inputs and weights.

    Activations and dropout become the identity, a maximum the mean over the same elements, batch
    norm its affine map per channel (with random statistics, so that a bound holds for all), other
    normalisations their affine part. What is left must be multilinear in the inputs and layers.
    """

    def __init__(
        self,
        forward: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
        parameters: Mapping[str, Tensor],
    ) -> None:
        self.forward = forward
        self.parameters = parameters

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
            copies = tuple(x.clone() for x in leaves)
            for x in copies:
                mode.tag(x, Activation(INPUT))
            with warnings.catch_warnings(), mode:
                # The user's code sees made-up numbers; what it has to say of them is of no use.
                warnings.simplefilter("ignore")
                outputs = self.forward(copies)
        mode.trace.inputs = leaves
        return mode.finish(outputs)


class SurrogateMode(TorchFunctionMode):
    """Sees every function of PyTorch that the network calls, and replaces some."""

    def __init__(self, parameters: Mapping[str, Tensor], weights: Weights) -> None:
        super().__init__()
        self.weights = weights
        self.trace = Trace()
        self._substitutes = {id(p): weights.values[name] for name, p in parameters.items()}
        self._parameters = dict(parameters)
        # Keeps tagged tensors alive, so that their ids stay theirs.
        self._tags: dict[int, tuple[Tensor, Activation | Weight]] = {}
        self._masks: dict[int, Tensor] = {}
        for name in parameters:
            self.tag(weights.values[name], Weight(frozenset({name})))

    def tag(self, tensor: Tensor, tag: Activation | Weight) -> Tensor:
        """Remember what a tensor is; return it."""
        self._tags[id(tensor)] = (tensor, tag)
        return tensor

    def tag_of(self, value: object) -> Activation | Weight | None:
        """What a value is, if it depends on inputs or parameters."""
        return self._tags[id(value)][1] if id(value) in self._tags else None

    def is_mask(self, value: object) -> bool:
        """Whether a value says where activations are large or small, as a number or a truth."""
        return id(value) in self._masks

    def note_masks(self, result: Any) -> Any:
        """Remember that all tensors of a result are masks; return it."""
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.ndim:
                self._masks[id(x)] = x
        return result

    def is_weight(self, value: object) -> bool:
        """Whether a value depends on parameters and not on inputs."""
        return isinstance(self.tag_of(value), Weight)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        args, kwargs = tree_map(lambda x: self._substitutes.get(id(x), x), (args, kwargs or {}))
        tags = [tag for x in tree_leaves((args, kwargs)) if (tag := self.tag_of(x)) is not None]
        activations = [t for t in tags if isinstance(t, Activation)]
        weights = [t for t in tags if isinstance(t, Weight)]
        name = getattr(func, "__name__", str(func)).strip("_")
        if any(map(self.is_mask, tree_leaves((args, kwargs)))):
            if not tags:
                return self.note_masks(func(*args, **kwargs))
            if activations:
                return Call(self, name, func, args, kwargs, activations, weights).masked()
        if not activations:
            return self._weights_only(name, func, args, kwargs, weights)
        return Call(self, name, func, args, kwargs, activations, weights).result()

    def _weights_only(
        self, name: str, func: Callable[..., Any], args: Any, kwargs: Any, weights: list[Weight]
    ) -> Any:
        result = func(*args, **kwargs)
        if not weights:
            return result
        divided = name in {"div", "truediv"} and not self.is_weight(args[1])
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
            self.tag(args[0], tag)
        return self.tag_all(result, tag)

    def tag_all(self, result: Any, tag: Activation | Weight) -> Any:
        """Tag every floating-point tensor of a result; return it."""
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.tag(x, tag)
        return result

    def finish(self, outputs: tuple[Tensor, ...]) -> Trace:
        """The trace, once the network has returned its outputs."""
        trace = self.trace
        trace.outputs = outputs
        sources, own = [], trace.replaced
        for output in outputs:
            tag = self.tag_of(output)
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
