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

from lightning_hessrank.network.modes import OrderedMode, Place, writes

#: Where ``max_norm`` stands among the arguments.
_RENORMALISING = {F.embedding: 3, F.embedding_bag: 4}


class WriteProtected(OrderedMode):
    """While active, notes what tries to write to some tensors, or to views of them.

    Args:
        tensors: the tensors.
    """

    place: ClassVar[Place] = Place.PROTECT

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.allows = True
        """Whether it may write; else it does nothing."""
        self.tried = False
        """Whether something has tried."""
        self._tensors = [x for x in tensors if x.numel()]
        self._storages: set[int] = set()

    def __enter__(self) -> WriteProtected:
        """Protect the tensors where they are now."""
        with torch._C.DisableTorchFunction():
            self._storages = {x.untyped_storage().data_ptr() for x in self._tensors}
        super().__enter__()
        return self

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func`` unless it writes to a protected tensor."""
        renormalises = _renormalises(func, args, kwargs) and self._is_protected(args[1:2])
        target = args[0] if args and writes(func) else kwargs.get("out")
        is_write = self._is_protected(target)
        self.tried |= is_write or renormalises
        if self.allows:
            return func(*args, **kwargs)
        if is_write:
            return target
        if renormalises:
            at = _RENORMALISING[func]
            args = (*args[:at], *(None for _ in args[at : at + 1]), *args[at + 1 :])
            kwargs = {**kwargs, **{name: None for name in kwargs if name == "max_norm"}}
        return func(*args, **kwargs)

    def _is_protected(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):  # torch._foreach_mul_
            return any(map(self._is_protected, value))
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return False
        with torch._C.DisableTorchFunction():
            return value.untyped_storage().data_ptr() in self._storages


def _renormalises(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    at = _RENORMALISING.get(func)
    if at is None:
        return False
    return (args[at] if len(args) > at else kwargs.get("max_norm")) is not None
