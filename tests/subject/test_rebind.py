"""Nothing in a copy refers to the live module: every kind of reference leads to the copy.

Every row reaches its module in another way, writes to it and computes with its weight.
"""

from __future__ import annotations

import copy
import functools
import operator
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_hessrank.subject import shadow
from lightning_hessrank.subject.isolated import IsolatedModule
from lightning_hessrank.subject.rebind import rebind
from lightning_hessrank.subject.step import module_step
from lightning_hessrank.subject.subject import Subject


class Net(nn.Module):
    """Reaches itself through ``get``, which the rows make."""

    def __init__(self, reach: Callable[[Net], Callable[[], Any]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.part = nn.Identity()
        self.seen: list[float] = []
        self.get = reach(self)

    def me(self) -> Net:
        return self

    def forward(self) -> Tensor:
        reached = self.get()
        reached.seen.append(1.0)
        return 3 * reached.weight


def called(function: Any, times: int = 1) -> Callable[[], Any]:
    """Return a closure that calls a function, and what that gives, and so on."""

    def get() -> Any:
        found = function
        for _ in range(times):
            found = found()
        return found

    return get


def nested(net: Net) -> Callable[[], Net]:
    def outer() -> Callable[[], Net]:
        return lambda: net

    def inner() -> Net:
        return outer()()

    return inner


def in_a_container(net: Net) -> Callable[[], Net]:
    held = {"nets": [net]}
    return lambda: held["nets"][0]


def decorated(net: Net) -> Callable[[], Net]:
    def get() -> Net:
        return net

    @functools.wraps(get)
    def wrapper() -> Net:
        return get()

    return wrapper


def recursive(net: Net) -> Callable[[], Net]:
    def get(depth: int = 3) -> Net:
        return get(depth - 1) if depth else net

    return get


def default(net: Net) -> Callable[[], Net]:
    return lambda found=net: found  # type: ignore[misc]


def keyword(net: Net) -> Callable[[], Net]:
    def get(*, found: Net = net) -> Net:
        return found

    return get


def weakly_keyed(net: Net) -> Callable[[], Net]:
    table = weakref.WeakKeyDictionary({net.part: "here"})
    owners = weakref.WeakValueDictionary({"here": net})
    return lambda: owners[table[net.part]]


class Slotted:
    __slots__ = ("get",)


def in_slots(net: Net) -> Callable[[], Net]:
    holder = Slotted()
    holder.get = lambda: net
    return functools.partial(operator.methodcaller("get"), holder)


def caught_by_a_hook(net: Net) -> Callable[[], Net]:
    caught: dict[str, Any] = {}
    net.part.register_forward_hook(lambda module, args, output: caught.update(net=net))

    def get() -> Net:
        net.part(torch.zeros(()))
        return caught["net"]

    return get


def caught_by_a_hook_with_arguments(net: Net) -> Callable[[], Net]:
    def hook(owner: Net, module: nn.Module, args: Any) -> None:
        owner.caught = owner

    net.part.register_forward_pre_hook(functools.partial(hook, net))

    def get() -> Net:
        net.part(torch.zeros(()))
        return net.caught  # type: ignore[return-value]

    return get


class Outside:
    """Not a part of the module, and found only through a closure."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.hooks = {"get": [self.find, lambda: self.net]}

    def find(self) -> Net:
        return self.hooks["get"][1]()


def outside(net: Net) -> Callable[[], Net]:
    other = Outside(net)
    return lambda: first(other.hooks["get"])


def method_of_a_list(net: Net) -> Callable[[], Net]:
    return functools.partial(lambda get: get()[0], [net].copy)


def first(functions: list[Callable[[], Any]]) -> Any:
    return functions[0]()


WAYS: dict[str, Callable[[Net], Callable[[], Any]]] = {
    "closure": lambda net: lambda: net,
    "nested closure": nested,
    "container in a closure": in_a_container,
    "decorated closure": decorated,
    "recursive closure": recursive,
    "closure over a bound method": lambda net: called(net.me),
    "default argument": default,
    "keyword's default": keyword,
    "partial": lambda net: functools.partial(lambda found: found, net),
    "partial of a closure": lambda net: functools.partial(lambda: net),
    "bound method": lambda net: net.me,
    "cached": lambda net: functools.lru_cache(lambda: net),
    "method of a list": method_of_a_list,
    "weak reference": weakref.ref,
    "weak method": lambda net: called(weakref.WeakMethod(net.me), 2),
    "weak reference in a closure": lambda net: called(weakref.ref(net)),
    "weak dictionaries": weakly_keyed,
    "slots": in_slots,
    "hook": caught_by_a_hook,
    "hook with arguments": caught_by_a_hook_with_arguments,
    "object in a closure": outside,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_reaches_itself(way: str) -> None:
    net = Net(WAYS[way])
    copy = IsolatedModule(net)
    for _ in range(2):
        loss = copy.run(lambda module: module() * (1 + len(module.seen)))
        (weight,) = copy.parameters.values()
        assert loss.item() == 6.0
        assert float(torch.autograd.grad(loss, weight)[0]) == 6.0
    assert net.seen == []
    assert net.get() is net


@pytest.mark.parametrize("way", [x for x in WAYS if x not in {"bound method", "partial"}])
def test_a_plain_deep_copy_would_reach_the_live_module(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for two kinds, which ``copy.deepcopy`` itself gets right."""
    monkeypatch.setattr(shadow, "rebind", lambda *args, **options: None)
    net = Net(WAYS[way])
    copy = IsolatedModule(net)
    copy.run(lambda module: module())
    assert net.seen == [1.0]


def test_a_way_that_cannot_be_followed_is_refused() -> None:
    """A function of another module that knows the live one by its name."""
    net = Net(WAYS["closure"])
    globals()["LIVE"] = net
    try:
        net.get = _by_name
        subject = Subject(net, [torch.zeros(1)], module_step(net, lambda module, batch: module()))
        with pytest.raises(ValueError, match="from the parameters of the live module"):
            subject.loss_function().terms[0].evaluate()
    finally:
        del globals()["LIVE"]


def _by_name() -> Any:
    return globals()["LIVE"]


def test_functions_that_refer_to_nothing_of_the_module_are_shared() -> None:
    def scaled(by: float) -> Callable[[float], float]:
        return lambda x: by * x

    net = Net(WAYS["closure"])
    net.plain, net.scaled = first, scaled(2.0)
    copy = IsolatedModule(net)
    assert copy.shadow.plain is first
    assert copy.shadow.scaled is net.scaled


def test_an_object_that_wraps_its_own_methods_is_copied_once() -> None:
    """As metrics of torchmetrics do, whenever they are made or copied."""

    class Wrapping:
        copies = 0

        def __init__(self) -> None:
            self.__setstate__({"total": 1})

        def __getstate__(self) -> dict[str, Any]:
            return {"total": self.total}

        def __setstate__(self, state: dict[str, Any]) -> None:
            Wrapping.copies += 1
            assert Wrapping.copies < 20, "copies of copies without end"
            vars(self).update(state)
            method = self.compute
            vars(self)["compute"] = lambda *args: method(*args) + 0

        def compute(self) -> Any:
            return self.total

    module = nn.Linear(2, 1)
    module.metric = Wrapping()
    memo: dict[int, Any] = {}
    copied = copy.deepcopy(module, memo)
    rebind(copied, memo)
    copied.metric.total = 5
    assert (module.metric.compute(), copied.metric.compute()) == (1, 5)
    assert Wrapping.copies == 2
