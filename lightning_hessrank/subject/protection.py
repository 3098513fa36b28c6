"""Trainable parameters that the step changes in place: once, and not again at other weights.

A step that normalises its prototypes, clips a weight or looks up an ``Embedding(max_norm)`` moves
the weights first and computes the loss at the new ones; that is where its gradient is taken. So the
copy's parameters are moved first, too, by running the step, and then held: a change of a change
(the normalised, displaced weights) is not what autograd differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_hessrank.network.modes import OrderedMode, Place

#: Where ``max_norm`` stands among the arguments.
_RENORMALISING = {F.embedding: 3, F.embedding_bag: 4}


class WriteProtected(OrderedMode):
    """While active, nothing writes to some tensors, or to views of them; what tries does nothing.

    Args:
        tensors: the tensors.
    """

    place: ClassVar[Place] = Place.PROTECT

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._storages = {x.untyped_storage().data_ptr() for x in tensors if x.numel()}

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func`` unless it writes to a protected tensor."""
        if func in _RENORMALISING and self._is_protected(args[1:2]):
            at = _RENORMALISING[func]
            args = (*args[:at], *(None for _ in args[at : at + 1]), *args[at + 1 :])
            kwargs = {**kwargs, **{name: None for name in kwargs if name == "max_norm"}}
        if args and _writes(func) and self._is_protected(args[0]):
            return args[0]
        if self._is_protected(kwargs.get("out")):
            return kwargs["out"]
        return func(*args, **kwargs)

    def _is_protected(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):  # torch._foreach_mul_
            return any(map(self._is_protected, value))
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return False
        with torch._C.DisableTorchFunction():
            return value.untyped_storage().data_ptr() in self._storages


def _writes(func: Callable[..., Any]) -> bool:
    """Whether a function changes its first argument (``mul_``, ``*=``, ``x[0] = …``)."""
    name = getattr(func, "__name__", "")
    if name == "__set__":
        return getattr(func, "__self__", None) is Tensor.data
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in _READING)
    return name.endswith("_") and name != "requires_grad_"


_READING = {"__init__", "__index__", "__int__", "__invert__", "__iter__"}
