"""Sees which parameters a network uses, and how, while it runs as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lightning_hessrank.network.layers import LinearCall, linear_call

_SOFTMAX = frozenset({"cross_entropy", "log_softmax", "softmax"})
#: Views of a weight: its gradient is that of the parameter, rearranged.
_VIEWS = frozenset(
    {"t", "transpose", "permute", "view", "reshape", "get", "getitem", "contiguous", "clone"}
    | {"split", "chunk", "unbind", "narrow"}
)


@dataclass(eq=False)
class RecordedUse:
    """One linear operation with the parameters of a layer."""

    names: frozenset[str]
    """Parameters that the weight and bias are, or are views of."""
    call: LinearCall
    output: Tensor
    """In the graph of the loss, before anything is done to it in place."""
    has_bias: bool
    """Whether the bias is among the parameters."""
    handed_on: Tensor
    """The copy of it that the network went on with."""
    earlier: frozenset[str]
    """Parameters used before."""
    behind_softmax: bool = False
    """Whether a softmax over its channels sees the output (others may, too)."""


class UseRecorder(TorchFunctionMode):
    """Records the linear uses of parameters; changes nothing of what the network computes."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.uses: list[RecordedUse] = []
        self.touched: set[str] = set()
        """Parameters that entered any operation, views of them included."""
        self.elsewhere: set[str] = set()
        """Parameters that entered an operation which is not linear in an activation and them."""
        # Tensors that are parameters or views of them; kept alive, so that ids stay theirs.
        self._weights: dict[int, tuple[Tensor, frozenset[str]]] = {
            id(p): (p, frozenset({name})) for name, p in parameters.items()
        }
        self._softmaxed: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``; note it if it uses parameters."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func)).strip("_")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        weights = [self._weights[id(x)][1] for x in tensors if id(x) in self._weights]
        if not weights:
            result = func(*args, **kwargs)
            self._note_softmax(name, tensors, args, kwargs, result)
            return result
        names = frozenset().union(*weights)
        call = linear_call(name, func, args, kwargs, lambda x: id(x) in self._weights)
        result = func(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()]
        if len(tensors) == 1 and name in _VIEWS:
            self._weights |= {id(x): (x, names) for x in made}
            return result
        if not made:
            return result  # a shape, a flag
        earlier = frozenset(self.touched)
        self.touched |= names
        self._note_softmax(name, tensors, args, kwargs, result)
        if call is None:
            self.elsewhere |= names
            return result
        handed_on = result.clone()
        has_bias = id(call.bias) in self._weights
        self.uses.append(RecordedUse(names, call, result, has_bias, handed_on, earlier))
        return handed_on

    def _note_softmax(
        self, name: str, tensors: list[Tensor], args: Any, kwargs: Any, result: Any
    ) -> None:
        leaves = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if name == "detach" or not any(x.requires_grad for x in leaves):
            return
        if name in _SOFTMAX and tensors:
            x = args[0] if args else kwargs["input"]
            dim = 1 if name == "cross_entropy" else kwargs.get("dim", (*args, None)[1:][0])
            self._softmaxed |= {id(x)} if dim in (1, 1 - x.ndim) and x.ndim > 1 else set()

    def finish(self) -> list[RecordedUse]:
        """The uses, with what followed them."""
        for use in self.uses:
            key = id(use.handed_on)
            channels = use.call.output_dim % use.output.ndim
            use.behind_softmax = key in self._softmaxed and channels == 1
        return self.uses
