"""Everything that code can change which is reached from an object: seen, exchanged, put back.

A *holder* is whatever refers to other objects and can be made to refer to others: attributes of an
object, a list, a dict, the cell of a closure. Modules are objects whose attributes are dicts of
parameters, buffers, hooks; nothing here knows more of them.

Two designs were weighed for putting state back: a new deep copy for each run (simple; but some
objects cannot be copied, and functions in them refer to the old copy), and this one: the objects
stay, what they refer to is noted once and put back after each run. Tensors, whose content changes
in place and which a graph may keep, are exchanged for clones while the code runs.
"""

from __future__ import annotations

import copy
import functools
import itertools
import random
import types
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lightning_hessrank.subject.trainer_view import ReadOnly

_LEAVES = (
    *(str, bytes, int, float, complex, type(None)),
    *(type, types.ModuleType, types.CodeType, torch.dtype, torch.device),
    *(Tensor, ReadOnly),
)
_UNINITIALIZED = (UninitializedBuffer, UninitializedParameter)


class Holder(NamedTuple):
    """What an object referred to when it was looked at."""

    owner: Any
    children: tuple[Any, ...]
    put: Callable[[Sequence[Any]], object]
    """Makes it refer to these in the place of ``children``, and to nothing else."""


def holders(
    root: Any,
    *,
    beyond: Collection[int] = (),
    replace: Callable[[Any], Any] | None = None,
) -> Iterator[Holder]:
    """Yield each holder reached from ``root`` once.

    Args:
        root: any object.
        beyond: ids of objects that are not entered.
        replace: gives what is to stand in the place of each child, before that is entered.
    """
    seen: dict[int, Any] = {}  # the objects are kept, so that their ids stay their own
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _LEAVES) or id(value) in seen or id(value) in beyond:
            continue
        seen[id(value)] = value
        waiting.extend(_passed_through(value))
        for found in _holders_of(value):
            holder = found
            if replace is not None:
                items = tuple(_exchanged(x, replace) for x in found.children)
                if any(new is not old for new, old in zip(items, found.children, strict=True)):
                    found.put(items)
                    holder = found._replace(children=items)
            yield holder
            waiting.extend(holder.children)


def tensors_of(holder: Holder) -> Iterator[Tensor]:
    """Yield the tensors that a holder refers to, also in tuples."""
    waiting = list(holder.children)
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            waiting.extend(value)


class State:
    """What code that runs on an object may change, as it was at construction.

    Args:
        root: the object.
        fixed: tensors that are neither exchanged nor put back (trainable parameters).
        beyond: ids of objects that do not belong to it.
    """

    def __init__(
        self, root: Any, fixed: Iterable[Tensor] = (), beyond: Collection[int] = ()
    ) -> None:
        self._fixed = {id(x) for x in fixed}
        self._holders = list(holders(root, beyond=beyond))
        self._with_copies = [
            x for x in self._holders if any(map(self._is_exchanged, _flat(x.children)))
        ]

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Let code inside change whatever it reaches, and forget the changes."""
        done: dict[int, Any] = {}

        def fresh(value: Any) -> Any:
            if not self._is_exchanged(value):
                return value
            if id(value) not in done:
                done[id(value)] = _copy_of(value)
            return done[id(value)]

        try:
            for holder in self._with_copies:
                holder.put([_exchanged(x, fresh) for x in holder.children])
            yield
        finally:
            for holder in self._holders:
                holder.put(holder.children)

    def _is_exchanged(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return id(value) not in self._fixed and not isinstance(value, _UNINITIALIZED)
        return isinstance(value, (itertools.count, itertools.cycle))


def _copy_of(value: Any) -> Any:
    if isinstance(value, nn.Parameter):
        return copy.deepcopy(value)
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of copying iterators, Python ≥ 3.12
        return copy.copy(value)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(value)
        else:
            yield value


def _exchanged(value: Any, replace: Callable[[Any], Any]) -> Any:
    """Replace a value, or what a tuple of values has in it."""
    if not isinstance(value, tuple) or isinstance(value, torch.Size):
        return replace(value)
    items = [_exchanged(x, replace) for x in value]
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _passed_through(value: Any) -> tuple[Any, ...]:
    """What is reached through an object that cannot be made to refer to something else."""
    if isinstance(value, (tuple, frozenset)):
        return tuple(value)
    if isinstance(value, types.MethodType):
        return value.__self__, value.__func__
    if isinstance(value, types.BuiltinFunctionType):
        return (value.__self__,)
    if isinstance(value, weakref.ref):
        return (value(),)
    if isinstance(value, functools._lru_cache_wrapper):
        return (value.__wrapped__,)
    if isinstance(value, torch.jit.ScriptModule):
        return tuple(value.children())
    return ()


def _holders_of(value: Any) -> Iterator[Holder]:
    for kind, look in _KINDS:
        if isinstance(value, kind):
            yield from look(value)
            break
    if not isinstance(value, (types.FunctionType, *_WEAK)):
        yield from _attributes(value)


def _list(value: list[Any]) -> Iterator[Holder]:
    yield Holder(value, tuple(value), lambda items: list.__setitem__(value, slice(None), items))


def _deque(value: deque[Any]) -> Iterator[Holder]:
    def put(items: Sequence[Any]) -> None:
        deque.clear(value)
        deque.extend(value, items)

    yield Holder(value, tuple(value), put)


def _dict(value: dict[Any, Any]) -> Iterator[Holder]:
    base: Any = OrderedDict if isinstance(value, OrderedDict) else dict  # Counter.update adds
    keys = tuple(value)

    def put(items: Sequence[Any]) -> None:
        base.clear(value)
        for key, item in zip(keys, items, strict=True):
            base.__setitem__(value, key, item)

    yield Holder(value, tuple(base.__getitem__(value, key) for key in keys), put)


def _set(value: set[Any]) -> Iterator[Holder]:
    def put(items: Sequence[Any]) -> None:
        set.clear(value)
        set.update(value, items)

    yield Holder(value, tuple(value), put)


def _weak_dict(value: Any) -> Iterator[Holder]:
    keys, children = tuple(value.keys()), tuple(value.values())

    def put(items: Sequence[Any]) -> None:
        value.clear()
        for key, item in zip(keys, items, strict=True):
            value[key] = item

    yield Holder(value, children, put)


def _function(value: Any) -> Iterator[Holder]:
    for cell in value.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        yield Holder(cell, (content,), functools.partial(_fill, cell))
    if value.__defaults__:
        defaults = value.__defaults__
        yield Holder(value, defaults, lambda x: setattr(value, "__defaults__", tuple(x)))
    yield from _dict(vars(value))
    if value.__kwdefaults__:
        yield from _dict(value.__kwdefaults__)


def _fill(cell: types.CellType, items: Sequence[Any]) -> None:
    (cell.cell_contents,) = items


def _partial(value: functools.partial[Any]) -> Iterator[Holder]:
    keywords = value.keywords

    def put(items: Sequence[Any]) -> None:
        value.__setstate__((items[0], tuple(items[1:]), keywords, None))  # type: ignore[attr-defined]

    yield Holder(value, (value.func, *value.args), put)
    yield from _dict(keywords)


def _array(value: np.ndarray[Any, Any]) -> Iterator[Holder]:
    if value.flags.writeable:
        content = value.copy()
        yield Holder(value, (), lambda _: np.copyto(value, content))


def _torch_generator(value: torch.Generator) -> Iterator[Holder]:
    state = value.get_state()
    yield Holder(value, (), lambda _: value.set_state(state))


def _numpy_generator(value: np.random.Generator) -> Iterator[Holder]:
    bits: Any = value.bit_generator
    state = bits.state
    yield Holder(value, (), lambda _: setattr(bits, "state", state))


def _old_numpy_generator(value: np.random.RandomState) -> Iterator[Holder]:
    state = value.get_state()
    yield Holder(value, (), lambda _: value.set_state(state))


def _python_generator(value: random.Random) -> Iterator[Holder]:
    state = value.getstate()
    yield Holder(value, (), lambda _: value.setstate(state))


def _script(value: Any) -> Iterator[Holder]:
    """Buffers and parameters that a scripted module keeps in C++."""
    tensors = (*value.named_parameters(recurse=False), *value.named_buffers(recurse=False))
    names = [name for name, _ in tensors]

    def put(items: Sequence[Any]) -> None:
        for name, item in zip(names, items, strict=True):
            if getattr(value, name) is not item:
                value._c.setattr(name, item)

    yield Holder(value, tuple(getattr(value, name) for name in names), put)


def _attributes(value: Any) -> Iterator[Holder]:
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict):
        yield from (x._replace(owner=value) for x in _dict(own))
    slots = [x for x in _slots(type(value)) if hasattr(value, x)]
    if slots:

        def put(items: Sequence[Any]) -> None:
            for name, item in zip(slots, items, strict=True):
                object.__setattr__(value, name, item)

        yield Holder(value, tuple(getattr(value, name) for name in slots), put)


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if isinstance(getattr(base, name, None), types.MemberDescriptorType):
                yield name


_WEAK = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
#: How to look at an object, by its type: the first that fits.
_KINDS: tuple[tuple[Any, Callable[[Any], Iterator[Holder]]], ...] = (
    (list, _list),
    (dict, _dict),
    (deque, _deque),
    (set, _set),
    (_WEAK, _weak_dict),
    (types.FunctionType, _function),
    (functools.partial, _partial),
    (np.ndarray, _array),
    (torch.Generator, _torch_generator),
    (np.random.Generator, _numpy_generator),
    (np.random.RandomState, _old_numpy_generator),
    (random.Random, _python_generator),
    (torch.jit.ScriptModule, _script),
)
