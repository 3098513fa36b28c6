"""The network's output: the tensors through which the loss depends on the parameters.

The loss is ``ℓ(f(θ))``; the parts of its Hessian depend on what is taken for ``f``. One definition
for every door: what is named, or enters a known loss function, or is returned by the model, or by
the last modules before the loss (see :mod:`~lightning_hessrank.subject.returns`); the first of
these through which *all* of the loss depends on the parameters. Where that is a softmax or sigmoid
of something, that something: so one loss has the same parts whether the softmax stands in the
model, in the loss, or is written out. What does not depend on the batch (a penalty on the weights
that is written with a known loss) is no output.

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
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lightning_hessrank.network import modes
from lightning_hessrank.network.autograd import graph_edges
from lightning_hessrank.network.batches import list_tensors, map_tensors
from lightning_hessrank.network.losses import TABLE, Loss
from lightning_hessrank.network.modes import OrderedMode, name_of, writes

#: Functions that a network's output goes through before a loss that expects (log-)probabilities,
#: by name, and whether they see only differences.
_LINKS = {"log_softmax": True, "softmax": True, "sigmoid": False, "logsigmoid": False}
#: Functions without which none of these can be written out.
_PIECES = frozenset({"exp", "logsumexp"})
#: Disagreement, relative to the largest value, up to which something is a softmax.
_SAME = 1e-10


class Place(NamedTuple):
    """Where an output was seen: the same in every run of a step, also of its linear surrogate."""

    kind: Literal["loss", "piece", "returned", "named", "module"]
    number: int = 0
    """Of the loss call, of the call of a piece of a softmax, of the call of a module, or of the
    tensor."""
    argument: int = 0
    """Of the loss call; of a module's call, the tensor among those that it returned."""


@dataclass(frozen=True)
class RecognisedOutput:
    """A tensor through which the loss depends on parameters."""

    tensor: Tensor
    loss: str
    """Name of the loss function; the kind of place where that is not known."""
    class_dim: int | None
    """Dimension along which a common shift leaves the loss unchanged (softmax), or ``None``."""
    place: Place
    of_batch: bool = True
    """Whether it depends on the batch, as far as can be seen."""


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

    def __init__(self, batch: Any = ()) -> None:
        super().__init__()
        # Tensors that depend on the batch.
        self._of_batch = WeakIdKeyDictionary(dict.fromkeys(list_tensors(batch), True))
        self.recognised: list[RecognisedOutput] = []
        """What entered known losses."""
        self._losses = 0
        self._at: dict[Place, Tensor] = {}
        # Keyed by id; the tensors are kept with them, since ids are used again.
        self._aliases: dict[int, tuple[Tensor, Tensor]] = {}
        self._links: dict[int, tuple[Tensor, _Behind]] = {}
        self._pieces: list[Tensor] = []

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func``; note pieces of a softmax, outputs, and what depends on the batch."""
        result = self._called(func, args, kwargs)
        written = args[:1] if writes(func) else ()
        self.watch((args, kwargs), (result, written))
        return result

    def watch(self, inputs: Any, outputs: Any) -> None:
        """Note that outputs depend on the batch, if any of the inputs does."""
        if any(isinstance(x, Tensor) and x in self._of_batch for x in tree_leaves(inputs)):
            for x in tree_leaves(outputs):
                if isinstance(x, Tensor):
                    self._of_batch[x] = True

    def _called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
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

    def outputs_of(self, tensors: Iterable[tuple[Place, Tensor]]) -> tuple[RecognisedOutput, ...]:
        """Return tensors that did not enter a known loss as outputs."""
        return tuple(
            self._output(x, place.kind, place) for place, x in tensors if _differentiable(x)
        )

    def keep(self, place: Place, tensor: Tensor) -> None:
        """Remember what was seen at a place."""
        self._at[place] = tensor

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
            self.watch(tensor, alias)
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
        behind, of_batch = self._behind(tensor), self._depends(tensor)
        if behind is None:
            return RecognisedOutput(tensor, loss, None, place, of_batch)
        piece = Place("piece", behind.piece)
        return RecognisedOutput(self.at(piece), loss, behind.class_dim, piece, of_batch)

    def _depends(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the batch; taken to, where something is hidden from modes."""
        if tensor in self._of_batch:
            return True
        return any(isinstance(node, BackwardCFunction) for node, _ in graph_edges([tensor]))

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
    loss: Tensor,
    candidates: Sequence[tuple[RecognisedOutput, ...]],
    guess: Callable[[], tuple[RecognisedOutput, ...]] = tuple,
) -> tuple[RecognisedOutput, ...]:
    """Return the first candidates through which all of the loss depends on parameters.

    Args:
        loss: of the step.
        candidates: the surest first; those that do not depend on the batch are passed over, if
            there are others that do.
        guess: asked for more where none of them is that.

    Returns:
        Where there is none either (a penalty on the weights is in the loss), the first that there
        are.
    """
    if any(x.of_batch for outputs in candidates for x in outputs):
        candidates = [tuple(x for x in outputs if x.of_batch) for outputs in candidates]
    found = [outputs for outputs in candidates if outputs]
    for outputs in found:
        if separates(loss, [x.tensor for x in outputs]):
            return outputs
    return guess() or (found[0] if found else ())


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
