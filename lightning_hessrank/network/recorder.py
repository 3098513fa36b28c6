"""Sees which parameters a network uses, and how, while it runs as it is.

One recorder serves the batch bound, which asks how every parameter is used, and the derivatives by
layers' outputs, which need those in the graph. Two designs were weighed: hooks on modules (miss
functional code and what is done between modules; a module's output may have been changed in place
by the next one), and a function mode. The mode sees every call, and hands on a copy of each output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_hessrank.network.layers import Layer, read_layer
from lightning_hessrank.network.losses import TABLE
from lightning_hessrank.network.modes import OrderedMode, Place, name_of

_SOFTMAX = frozenset({"log_softmax", "softmax"})
#: Views of a weight: its gradient is that of the parameter, rearranged.
_VIEWS = frozenset(
    {"t", "transpose", "permute", "view", "reshape", "get", "getitem", "contiguous", "clone"}
    | {"split", "chunk", "unbind", "narrow"}
)


@dataclass(eq=False)
class RecordedUse:
    """One call of a layer with parameters."""

    names: frozenset[str]
    """Parameters that its arguments are, or are views of."""
    layer: Layer
    output: Tensor
    """``z``, in the graph of the loss, before anything is done to it in place."""
    is_linear: bool
    """Whether the weight is made of parameters, and the input is not."""
    has_bias: bool
    """Whether the bias is among the parameters."""
    handed_on: Tensor
    """The copy of it that the network went on with."""
    earlier: frozenset[str]
    """Parameters used before."""
    behind_softmax: bool = False
    """Whether a softmax over its channels sees the output (others may, too)."""

    def owns(self, wanted: Collection[int]) -> bool:
        """Whether weight or bias are parameters with these ids, rather than views of them."""
        return id(self.layer.weight) in wanted or id(self.layer.bias) in wanted


class LayerRecorder(OrderedMode):
    """Records the layers that parameters are used in; changes nothing of what is computed."""

    place = Place.READ

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.uses: list[RecordedUse] = []
        """In the order of the calls."""
        self.touched: set[str] = set()
        """Parameters that entered any operation, views of them included."""
        self.elsewhere: set[str] = set()
        """Parameters that entered an operation which is not linear in an activation and them."""
        # Tensors that are parameters or views of them; kept alive, so that ids stay theirs.
        self._weights: dict[int, tuple[Tensor, frozenset[str]]] = {
            id(p): (p, frozenset({name})) for name, p in parameters.items()
        }
        self._softmaxed: set[int] = set()
        # Aliases, which a loss may be given, by id: kept alive, with the id of their tensor.
        self._aliases: dict[int, tuple[Tensor, int]] = {}

    def is_weight(self, value: object) -> bool:
        """Whether a value is a parameter or a view of one."""
        return id(value) in self._weights

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func``; note it if it uses parameters."""
        name = name_of(func)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        found = [self._weights[id(x)][1] for x in tensors if self.is_weight(x)]
        names = frozenset[str]().union(*found)
        result = func(*args, **kwargs)
        if names:
            leaves = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            made = [x for x in leaves if x.is_floating_point()]
            if len(tensors) == 1 and name in _VIEWS:
                self._weights |= {id(x): (x, names) for x in made}
                return result
            if not made:
                return result  # a shape, a flag
        self._note_softmax(func, tensors, args, kwargs, result)
        return self._recorded(func, args, kwargs, names, result) if names else result

    def _recorded(
        self, func: Any, args: Any, kwargs: Any, names: frozenset[str], result: Any
    ) -> Any:
        """Remember a use of parameters; return what the network goes on with."""
        earlier = frozenset(self.touched)
        self.touched |= names
        layer = read_layer(func, args, kwargs, self.is_weight)
        if layer is None:
            self.elsewhere |= names
            return result
        is_linear = self.is_weight(layer.weight) and not self.is_weight(layer.input)
        self.elsewhere |= frozenset() if is_linear else names
        copy = self.hand_on(result) if is_linear else result.clone()
        has_bias = self.is_weight(layer.bias)
        self.uses.append(RecordedUse(names, layer, result, is_linear, has_bias, copy, earlier))
        return copy

    def hand_on(self, output: Tensor) -> Tensor:
        """What the network goes on with in the place of a layer's output."""
        return output.clone()

    def _note_softmax(
        self, func: Callable[..., Any], tensors: list[Tensor], args: Any, kwargs: Any, result: Any
    ) -> None:
        name, leaves = name_of(func), [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if name == "detach" or not any(x.requires_grad for x in leaves):
            return
        has_softmax = func in TABLE and TABLE[func].has_softmax
        if (has_softmax or name in _SOFTMAX) and tensors:
            x = args[0] if args else kwargs["input"]
            dim = 1 if has_softmax else kwargs.get("dim", (*args, None)[1:][0])
            self._softmaxed |= {self._key(x)} if dim in (1, 1 - x.ndim) and x.ndim > 1 else set()
        if name in {"view_as", "alias"} and leaves:
            self._aliases[id(leaves[0])] = (leaves[0], self._key(tensors[0]))

    def _key(self, x: Tensor) -> int:
        return self._aliases[id(x)][1] if id(x) in self._aliases else id(x)

    def has_all_uses_of(self, names: Collection[str], wanted: Collection[int]) -> bool:
        """Whether parameters are used as weights and biases of layers only, and none as a view.

        Args:
            names: of the parameters.
            wanted: their ids.
        """
        uses = [use for use in self.uses if use.names & set(names)]
        seen = frozenset[str]().union(*(use.names for use in uses))
        return all(use.owns(wanted) for use in uses) and set(names) <= seen

    def finish(self) -> list[RecordedUse]:
        """The uses, with what followed them."""
        for use in self.uses:
            z, first = use.output, use.layer.channels_first(use.output)
            in_place = (first.shape, first.stride()) == (z.shape, z.stride())
            use.behind_softmax = id(use.handed_on) in self._softmaxed and in_place
        return self.uses
