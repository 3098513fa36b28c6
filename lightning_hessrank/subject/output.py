"""The network's output: the tensors through which the loss depends on the parameters.

The loss is ``ℓ(f(θ))``; the parts of its Hessian depend on what is taken for ``f``. One definition
for every door: what enters a known loss function (or is named, or returned by the model), and where
that is a softmax or sigmoid of something, that something: so one loss has the same parts whether
the softmax stands in the model, in the loss, or is written out.

Two designs were weighed: forward hooks on the module (miss whatever a step does between ``forward``
and the loss, and functional code), and a function mode that sees each call of a known loss
function. The mode needs no help from the user and also tells which loss it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_hessrank.network import modes
from lightning_hessrank.network.autograd import graph_edges
from lightning_hessrank.network.batches import map_tensors
from lightning_hessrank.network.losses import TABLE, Loss
from lightning_hessrank.network.modes import OrderedMode, name_of

#: Functions that a network's output goes through before a loss that expects (log-)probabilities,
#: by name, and whether they see only differences.
_LINKS = {"log_softmax": True, "softmax": True, "sigmoid": False, "logsigmoid": False}
#: Functions without which none of these can be written out.
_PIECES = frozenset({"exp", "logsumexp"})
#: Disagreement, relative to the largest value, up to which something is a softmax.
_SAME = 1e-10


class Place(NamedTuple):
    """Where an output was seen: the same in every run of a step, also of its linear surrogate."""

    kind: Literal["loss", "piece", "returned", "named"]
    number: int = 0
    """Of the loss call, of the call of a piece of a softmax, or of the tensor."""
    argument: int = 0
    """Of the loss call."""


@dataclass(frozen=True)
class RecognisedOutput:
    """A tensor through which the loss depends on parameters."""

    tensor: Tensor
    loss: str
    """Name of the loss function; ``"named"`` or ``"returned"`` where that is not known."""
    class_dim: int | None
    """Dimension along which a common shift leaves the loss unchanged (softmax), or ``None``."""
    place: Place


class _Behind(NamedTuple):
    """What a tensor is a softmax or sigmoid of."""

    piece: int
    """Number of the piece."""
    class_dim: int | None


class OutputRecorder(OrderedMode):
    """While active, remembers what enters the loss functions of the table of losses.

    A loss gets an alias of each output, a node of its own in the graph, and the alias is what is
    remembered: so a derivative with respect to it is one of the loss alone, even where the network
    goes on from the same tensor to another output.
    """

    place: ClassVar[modes.Place] = modes.Place.OUTPUT

    def __init__(self) -> None:
        super().__init__()
        self.recognised: list[RecognisedOutput] = []
        """What entered known losses."""
        self._losses = 0
        self._at: dict[Place, Tensor] = {}
        # Keyed by id; the tensors are kept with them, since ids are used again.
        self._aliases: dict[int, tuple[Tensor, Tensor]] = {}
        self._links: dict[int, tuple[Tensor, _Behind]] = {}
        self._pieces: list[Tensor] = []

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func``; note pieces of a softmax, and outputs."""
        if func in TABLE:
            loss, number = TABLE[func], self._losses
            self._losses += 1
            args = tuple(self._note(loss, Place("loss", number, i), x) for i, x in enumerate(args))
            named = enumerate(kwargs.items(), start=len(args))
            kwargs = {k: self._note(loss, Place("loss", number, i), x) for i, (k, x) in named}
            return func(*args, **kwargs)
        name = name_of(func)
        source = args[0] if args else kwargs.get("input")
        if (name not in _LINKS and name not in _PIECES) or not _differentiable(source):
            return func(*args, **kwargs)
        self._pieces.append(source)
        if name not in _LINKS:
            return func(*args, **kwargs)
        alias = self._alias(source)
        kwargs = kwargs if args else {**kwargs, "input": alias}
        result = func(*((alias, *args[1:]) if args else ()), **kwargs)
        dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
        along = dim % max(source.ndim, 1) if _LINKS[name] and isinstance(dim, int) else None
        self._links[id(result)] = result, _Behind(len(self._pieces) - 1, along)
        return result

    def returned(self, outputs: Any) -> Any:
        """Give what a model returned nodes of its own, but for a softmax of something."""

        def alias(x: Tensor) -> Tensor:
            return self._alias(x) if _differentiable(x) and self._behind(x) is None else x

        return map_tensors(outputs, alias)

    def outputs_of(
        self, kind: Literal["returned", "named"], tensors: Iterable[Tensor]
    ) -> tuple[RecognisedOutput, ...]:
        """Return tensors that did not enter a known loss as outputs."""
        found = []
        for i, x in enumerate(tensors):
            if _differentiable(x):
                found.append(self._output(x, kind, Place(kind, i)))
        return tuple(found)

    def at(self, place: Place) -> Tensor:
        """Return the tensor that was seen at a place."""
        if place.kind != "piece":
            return self._at[place]
        piece = self._pieces[place.number]
        return self._aliases.get(id(piece), (piece, piece))[1]

    def _alias(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._aliases:
            alias = tensor.view_as(tensor)
            self._aliases[id(tensor)] = tensor, alias
            self._aliases[id(alias)] = alias, alias
        return self._aliases[id(tensor)][1]

    def _note(self, loss: Loss, place: Place, argument: Any) -> Any:
        """Remember an argument of a loss, if it is an output; return what the loss gets for it."""
        if not _differentiable(argument):
            return argument
        if self._behind(argument) is None:
            argument = self._alias(argument)
        output = self._output(argument, loss.name, place)
        if loss.has_softmax:
            output = replace(output, class_dim=loss.class_dim(output.tensor))
        if all(output.tensor is not known.tensor for known in self.recognised):
            self.recognised.append(output)
        return argument

    def _output(self, tensor: Tensor, loss: str, place: Place) -> RecognisedOutput:
        """Return a tensor, or what it is a softmax or sigmoid of, as an output."""
        self._at[place] = tensor
        behind = self._behind(tensor)
        if behind is None:
            return RecognisedOutput(tensor, loss, None, place)
        place = Place("piece", behind.piece)
        return RecognisedOutput(self.at(place), loss, behind.class_dim, place)

    def _behind(self, tensor: Tensor) -> _Behind | None:
        if id(tensor) in self._links:
            return self._links[id(tensor)][1]
        for number, piece in enumerate(self._pieces):
            if piece.shape == tensor.shape and piece is not tensor:
                written = _written_out(tensor, piece)
                if written is not None and separates(tensor, [self.at(Place("piece", number))]):
                    return _Behind(number, *written)
        return None


def choose_outputs(
    loss: Tensor, candidates: Sequence[tuple[RecognisedOutput, ...]]
) -> tuple[RecognisedOutput, ...]:
    """Return the first candidates through which all of the loss depends on parameters.

    Where none of them is that (a penalty on the weights is in the loss), the first that there are.
    """
    found = [outputs for outputs in candidates if outputs]
    for outputs in found:
        if separates(loss, [x.tensor for x in outputs]):
            return outputs
    return found[0] if found else ()


def separates(loss: Tensor, outputs: Sequence[Tensor]) -> bool:
    """Whether every way from a tensor back to a parameter leads through one of the outputs."""
    edges = graph_edges([loss], stops=outputs)
    return not any(hasattr(node, "variable") for node, _ in edges)  # a leaf with a gradient


def reaches(loss: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor is on a way from the loss back."""
    return (tensor.grad_fn, tensor.output_nr) in graph_edges([loss])


def _written_out(tensor: Tensor, source: Tensor) -> tuple[int | None] | None:
    """Whether a tensor is a softmax or sigmoid of another, and along which dimension."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        for dim in sorted({1 % max(source.ndim, 1), source.ndim - 1}) if source.ndim else ():
            if _equal(tensor, source.log_softmax(dim)) or _equal(tensor, source.softmax(dim)):
                return (dim,)
        for signed in (source, -source):
            if _equal(tensor, signed.sigmoid()) or _equal(tensor, F.logsigmoid(signed)):
                return (None,)
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _SAME * b.abs().max()) if a.numel() else False


def _differentiable(value: Any) -> TypeGuard[Tensor]:
    """Whether a value depends on parameters; a parameter itself (in a penalty) is no output."""
    return isinstance(value, Tensor) and value.requires_grad and not value.is_leaf
