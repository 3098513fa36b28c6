"""Values that a step takes out of the graph, held fixed while its parameters move.

A stop-gradient (``detach``, ``.data``, ``no_grad``, ``item``) makes the gradient that of the loss
with the detached value held. Differences of such gradients see the value move, and would accuse
second derivatives that are right. So the values are recorded at one point and played back at
others. (What a step writes into its parameters is not seen here: the subject of a measurement has
them written once, and then held.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_hessrank.network.modes import OrderedMode, Place, name_of, writes


class HeldValues(OrderedMode):
    """Records what leaves the graph in one run, and plays it back in later ones.

    Each ``with`` is one run; :attr:`recording` says which kind. Runs that do not ask for the same
    values as the recorded one compute their own. An embedding's padding is such a value: its lookup
    has no gradient, though its row may have one elsewhere (weights tied to a decoder's).

    Args:
        padding_only: leave everything else that leaves the graph to follow the parameters.
    """

    place: ClassVar[Place] = Place.HOLD

    def __init__(self, *, padding_only: bool = False) -> None:
        super().__init__()
        self._padding_only = padding_only
        self.recording = True
        self._values: list[Any] = []
        self._next = 0
        # Views of parameters outside the graph, by id, with the values that they stand for.
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> HeldValues:
        """Begin a run."""
        self._next = 0
        self._views.clear()
        if self.recording:
            self._values.clear()
        super().__enter__()
        return self

    @property
    def holds(self) -> bool:
        """Whether the recorded run had anything to hold."""
        return bool(self._values)

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func``; hold its result if it is of the parameters, but outside the graph."""
        if _inside_custom_function():
            return func(*args, **kwargs)
        if func is F.embedding and (found := self._padded(*args, **kwargs)) is not None:
            return found
        if self._padding_only:
            return func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        with torch._C.DisableTorchFunction():
            inside = any(x.requires_grad for x in tensors)
            views = any(id(x) in self._views for x in tensors)
        if not inside and not views:
            return func(*args, **kwargs)
        if views:
            args, kwargs = tree_map(self._value_of, (args, kwargs))
        result = func(*args, **kwargs)
        if not inside and not views:
            return result
        with torch._C.DisableTorchFunction(), torch.no_grad():
            if writes(func):  # functions of lists (``_foreach_mul_``) need not return what changed
                written = args[0] if args else result
                if _is_outside(written):
                    _copy_into(written, self._hold(written))
                return result
            if not _is_outside(result):
                return result
            if name_of(func) in {"detach", "get"} and _is_view_of_leaf(result, tensors[0]):
                self._views[id(result)] = result, self._hold(result.clone())
                return result
            return self._hold(result)

    def _padded(
        self, input: Tensor, weight: Tensor, padding_idx: int | None = None, *rest: Any, **more: Any
    ) -> Tensor | None:
        """Look up; the padding, whose gradient autograd leaves out, has its recorded value."""
        if padding_idx is None or not weight.requires_grad:
            return None
        result = F.embedding(input, weight, padding_idx, *rest, **more)
        with torch._C.DisableTorchFunction():
            padding = input == padding_idx % len(weight)
            return torch.where(padding.unsqueeze(-1), self._hold(result.detach()), result)

    def _hold(self, result: Any) -> Any:
        """Record a result, or return what was recorded in its place."""
        if self.recording:
            self._values.append(tree_map(_copied, result))
            return result
        self._next += 1
        if self._next > len(self._values):
            return result
        held = self._values[self._next - 1]
        return tree_map(_copied, held) if _alike(held, result) else result

    def _value_of(self, x: Any) -> Any:
        return self._views[id(x)][1] if id(x) in self._views else x


def _inside_custom_function() -> bool:
    """Whether the forward pass of a custom autograd function runs: it has a gradient of its own.

    PyTorch switches forward-mode derivatives off there, as ``no_grad`` does not.
    """
    return not torch._C._is_fwd_grad_enabled() and not torch.is_inference_mode_enabled()


def _is_outside(result: Any) -> bool:
    """Whether a result consists of real numbers without a gradient."""
    leaves = tree_leaves(result)
    return bool(leaves) and all(
        isinstance(x, float)
        or (isinstance(x, Tensor) and x.is_floating_point() and not x.requires_grad)
        for x in leaves
    )


def _is_view_of_leaf(result: Any, source: Tensor) -> bool:
    return (
        isinstance(result, Tensor)
        and source.is_leaf
        and source.requires_grad
        and result.data_ptr() == source.data_ptr()
    )


def _copy_into(written: Any, held: Any) -> None:
    """Write values in the place of what was written, unless they are the same tensors."""
    for x, y in zip(tree_leaves(written), tree_leaves(held), strict=True):
        if isinstance(x, Tensor) and x is not y:
            x.copy_(y)


def _copied(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _alike(held: Any, result: Any) -> bool:
    """Whether the same was asked for as when it was recorded."""
    one, two = tree_leaves(held), tree_leaves(result)
    return len(one) == len(two) and all(
        getattr(x, "shape", None) == getattr(y, "shape", None)
        for x, y in zip(one, two, strict=True)
    )
