"""Functions and weak references in a deep copy, made to refer to the copy.

``copy.deepcopy`` shares both: a hook that closes over its module, a cached bound method, a weak
reference to a parent would lead from the copy back to the live module.
"""

from __future__ import annotations

import copy
import dis
import functools
import types
import weakref
from collections.abc import Collection
from typing import Any

from lightning_hessrank.subject.duplicate import settle
from lightning_hessrank.subject.state import holders


def rebind(copied: Any, memo: dict[int, Any], *, beyond: Collection[int] = ()) -> None:
    """Let functions and weak references that are reached from a copy refer to copies.

    What a function closes over, and has not been copied yet, is copied now.

    Args:
        copied: a deep copy; changed in place.
        memo: of ``copy.deepcopy``: ``id(x)`` -> copy of ``x``; it grows.
        beyond: ids of objects that are not the copy's, which are not entered.
    """
    for _ in holders(copied, beyond=beyond, replace=_Rebinder(memo)):
        pass


class _KeptReference(weakref.ref[Any]):
    """A weak reference that keeps what it refers to: nothing else may hold a copy."""

    __slots__ = ("kept",)
    kept: Any

    def __new__(cls, kept: Any) -> _KeptReference:
        reference = super().__new__(cls, kept)
        reference.kept = kept
        return reference


class _Rebinder:
    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._own = {id(x) for x in memo.values()}

    def __call__(self, value: Any) -> Any:
        """Return what is to stand in the place of a value of the copy, itself maybe."""
        if isinstance(value, weakref.WeakKeyDictionary):
            self._exchange(value, [(self._copied(key), item) for key, item in value.items()])
        elif isinstance(value, weakref.WeakValueDictionary):
            self._exchange(value, [(key, self._copied(item)) for key, item in value.items()])
        return self._rebound(value)

    def _rebound(self, value: Any) -> Any:
        """Return what stands for a function, method or reference; anything else as it is."""
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return self._method(value)
        if isinstance(value, types.BuiltinFunctionType):
            return self._builtin(value)
        if isinstance(value, weakref.ref):
            return self._reference(value)
        if isinstance(value, functools._lru_cache_wrapper):
            return self._cached(value)
        return value

    @staticmethod
    def _exchange(table: Any, items: list[tuple[Any, Any]]) -> None:
        table.clear()
        for key, item in items:
            table[key] = item

    def _copied(self, value: Any) -> Any:
        """Return the copy of a value, made now where there is none yet."""
        rebound = self._rebound(value)
        if rebound is not value or id(value) in self._own or isinstance(value, types.FunctionType):
            return rebound
        if isinstance(value, types.MethodType) and id(value.__self__) in self._own:
            return value  # deepcopy would copy the copy that owns it, whose methods are new, too
        if id(value) not in self._memo:
            trial = dict(self._memo)  # what fails leaves half-made copies behind
            try:
                found = copy.deepcopy(value, trial)
            except Exception:
                settle(value, self._memo, set())
                trial = dict(self._memo)
                try:
                    found = copy.deepcopy(value, trial)
                except Exception:
                    return value
            self._own |= {id(x) for key, x in trial.items() if key not in self._memo}
            self._memo.update(trial)
            return found
        return self._memo[id(value)]

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        if id(function) in self._memo or id(function) in self._own:
            return self._memo.get(id(function), function)
        closure = function.__closure__ or ()
        if not closure and not function.__defaults__ and not function.__kwdefaults__:
            return function
        # as deepcopy does: what is known by its id must not die, or another object gets that id
        self._memo.setdefault(id(self._memo), []).append(function)
        cells = tuple(self._memo.setdefault(id(x), types.CellType()) for x in closure)
        new = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, None, cells
        )
        self._memo[id(function)] = new  # it may refer to itself
        differs = _assigns(function.__code__)
        for old, cell in zip(closure, cells, strict=True):
            differs |= self._fill(old, cell, new)
        defaults = tuple(map(self._copied, function.__defaults__ or ()))
        keywords = {k: self._copied(v) for k, v in (function.__kwdefaults__ or {}).items()}
        before = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        pairs = zip((*defaults, *keywords.values()), before, strict=True)
        if not differs and all(x is y for x, y in pairs):
            self._memo[id(function)] = function
            return function
        new.__defaults__, new.__kwdefaults__ = defaults or None, keywords or None
        new.__dict__.update({k: self._copied(v) for k, v in vars(function).items()})
        new.__qualname__, new.__doc__ = function.__qualname__, function.__doc__
        new.__module__, new.__annotations__ = function.__module__, function.__annotations__
        self._own.add(id(new))
        return new

    def _fill(self, old: types.CellType, cell: types.CellType, function: Any) -> bool:
        """Fill the new cell of a closure; return whether it has something else in it."""
        try:
            content = old.cell_contents
        except ValueError:  # not assigned yet
            return False
        try:
            found = cell.cell_contents  # another function has the same cell
        except ValueError:
            cell.cell_contents = found = self._copied(content)
        return found is not content and found is not function

    def _method(self, method: types.MethodType) -> types.MethodType:
        function, owner = self._rebound(method.__func__), self._memo.get(id(method.__self__))
        if owner is None:
            owner = method.__self__
        if function is method.__func__ and owner is method.__self__:
            return method
        return types.MethodType(function, owner)

    def _builtin(self, method: Any) -> Any:
        """A method of a list or dict, say; functions of a module have that for their owner."""
        if isinstance(method.__self__, (types.ModuleType, type, types.NoneType)):
            return method
        owner = self._copied(method.__self__)
        return method if owner is method.__self__ else getattr(owner, method.__name__)

    def _reference(self, reference: weakref.ref[Any]) -> Any:
        target = reference()
        if target is None or isinstance(reference, _KeptReference):
            return reference
        if isinstance(reference, weakref.WeakMethod):
            method = self._method(target)
            return reference if method is target else weakref.WeakMethod(method)
        found = self._copied(target)
        return reference if found is target else _KeptReference(found)

    def _cached(self, cached: Any) -> Any:
        wrapped = self._copied(cached.__wrapped__)
        if wrapped is cached.__wrapped__:
            return cached
        return functools.lru_cache(**cached.cache_parameters())(wrapped)


def _assigns(code: types.CodeType) -> bool:
    """Whether a function assigns to a variable that it closes over (``nonlocal``)."""
    if any(
        x.opname == "STORE_DEREF" and x.argval in code.co_freevars
        for x in dis.get_instructions(code)
    ):
        return True
    nested = (x for x in code.co_consts if isinstance(x, types.CodeType))
    return any(set(x.co_freevars) & set(code.co_freevars) and _assigns(x) for x in nested)
