"""Copies of modules whose attributes Python cannot, or should not, copy."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest
import torch
from torch import nn

from lightning_hessrank.subject.duplicate import duplicate


def with_attribute(value: Any) -> Any:
    net = nn.Linear(2, 2)
    net.attribute = value
    return net


@pytest.mark.parametrize("lock", [threading.Lock, threading.RLock])
@pytest.mark.parametrize("hide", [lambda x: x, lambda x: [x], lambda x: {"a": (x,)}])
def test_a_held_lock_is_a_new_one_in_the_copy(lock: Any, hide: Any) -> None:
    held = lock()
    with held:
        copied = duplicate(with_attribute(hide(held)), {}).attribute
        while isinstance(copied, (list, dict, tuple)):
            copied = copied["a"] if isinstance(copied, dict) else copied[0]
        assert copied is not held
        assert copied.acquire(blocking=False)


def test_writers_fall_silent() -> None:
    stream = io.StringIO()
    copied = duplicate(with_attribute({"log": stream, "lock": threading.Lock()}), {})
    copied.attribute["log"].write("from the copy")
    assert stream.getvalue() == ""


def test_a_tensor_with_a_graph_is_nan_in_the_copy() -> None:
    net = nn.Linear(2, 2)
    net.last = net(torch.ones(1, 2))
    net.history = [net.last, torch.ones(2)]
    copied = duplicate(net, {})
    assert bool(copied.last.isnan().all())
    assert torch.equal(copied.history[1], torch.ones(2))
    assert bool(net.last.isfinite().all())


def test_an_iterator_may_not_be_drawn_from() -> None:
    net = with_attribute(x for x in range(3))
    copied = duplicate(net, {})
    with pytest.raises(TypeError, match=r"draws from a Python generator .* pass loss_fn="):
        next(copied.attribute)
    assert next(net.attribute) == 0


def test_what_is_in_the_memo_is_exchanged() -> None:
    trainer, view = object(), object()
    assert duplicate(with_attribute(trainer), {id(trainer): view}).attribute is view


def test_what_nobody_knows_is_shared_and_the_rest_copied() -> None:
    class Stubborn:
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("no copies of me")

    stubborn, numbers = Stubborn(), [1, 2]
    copied = duplicate(with_attribute({"a": stubborn, "b": numbers}), {})
    assert copied.attribute["a"] is stubborn
    assert copied.attribute["b"] == numbers
    assert copied.attribute["b"] is not numbers
