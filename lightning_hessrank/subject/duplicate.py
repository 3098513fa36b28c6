"""Deep copies of modules with attributes that Python cannot, or should not, copy.

What goes wrong when such an attribute is simply shared decides what stands in for it: a lock may be
held, a writer would log twice, a generator would be drawn from behind the run's back.
"""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Iterator
from types import GeneratorType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lightning_hessrank.network.batches import list_tensors

_Module = TypeVar("_Module", bound=nn.Module)

#: Attributes that every module has: parameters, buffers, hooks and the like.
MODULE_INTERNALS = frozenset(vars(nn.Module()))
_WRITING = ("add_scalar", "log_metrics", "write", "writerow", "emit")


def duplicate(module: _Module, memo: dict[int, Any]) -> _Module:
    """Copy a module deeply.

    Tensors that belong to an autograd graph, which cannot be copied, become NaN, so that using a
    stale one shows. Locks become new locks, and writers fall silent; an iterator that cannot be
    copied raises when it is drawn from. Anything else that cannot be copied is shared.

    Args:
        module: any module.
        memo: ``id(x)`` -> what to put in the place of ``x``; the copies of all objects are added.
    """
    attributes = [
        value
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in MODULE_INTERNALS and id(value) not in memo
    ]
    for value in attributes:
        for tensor in list_tensors(value) if isinstance(value, (Tensor, list, tuple, dict)) else ():
            if not tensor.is_leaf:
                memo[id(tensor)] = torch.full_like(tensor.detach(), torch.nan)
    copies = dict(memo)  # what fails leaves half-made copies behind
    try:
        found = copy.deepcopy(module, copies)
    except Exception:  # probing each attribute copies it, so only where the direct way fails
        seen: set[int] = set()
        for value in attributes:
            settle(value, memo, seen)
        return copy.deepcopy(module, memo)
    memo.update(copies)
    return found


def settle(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    """Note stand-ins for the innermost objects within ``value`` that cannot be copied.

    Args:
        value: any object.
        memo: ``id(x)`` -> what to put in the place of ``x``; stand-ins are added.
        seen: ids of what has been looked at.
    """
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if _can_copy(value, memo):
        return
    known = _known_stand_in(value)
    if known is None:
        for child in _children(value):
            settle(child, memo, seen)
        if _can_copy(value, memo):
            return
    memo[id(value)] = value if known is None else known


def _can_copy(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True


def _children(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    return list(getattr(value, "__dict__", {}).values())


def _known_stand_in(value: Any) -> Any:
    if isinstance(value, type(threading.Lock())):
        return threading.Lock()
    if isinstance(value, type(threading.RLock())):
        return threading.RLock()
    if isinstance(value, torch.Generator):  # torch < 2.5 cannot copy them
        return torch.Generator(value.device).set_state(value.get_state())
    if isinstance(value, GeneratorType):
        return _SpentIterator()
    if isinstance(value, io.IOBase) or any(callable(getattr(value, n, None)) for n in _WRITING):
        return SILENCE
    return None


class _SpentIterator:
    """Stands for an iterator of the live module, which only training may advance."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise TypeError(
            "the step draws from a Python generator that is an attribute of the module: it cannot "
            "be copied, and measuring must not advance it; pass loss_fn=... to the monitor "
            "(loss_fn(module, batch) -> scalar loss)"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> _SpentIterator:
        return self


class _Silence:
    """Answers every call and attribute with itself; stands for writers and loggers."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


SILENCE = cast("Any", _Silence())
