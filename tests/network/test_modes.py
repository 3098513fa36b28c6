"""Function modes stack in one order only, the one in which each sees what it has to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from lightning_hessrank.bounds.surrogate import SurrogateMode
from lightning_hessrank.bounds.trace import Weights
from lightning_hessrank.hessian.rewrite import CheaperDerivatives
from lightning_hessrank.network.modes import OrderedMode, Place, name_of
from lightning_hessrank.network.recorder import LayerRecorder

SEEN: list[Place] = []


def mode_at(where: Place) -> OrderedMode:
    class Watching(OrderedMode):
        place = where

        def call(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            SEEN.append(self.place)
            return func(*args, **kwargs)

    return Watching()


def test_the_last_place_sees_a_call_first() -> None:
    SEEN.clear()
    with ExitStack() as stack:
        for place in Place:
            stack.enter_context(mode_at(place))
        torch.zeros(1)
    assert sorted(Place, reverse=True) == SEEN
    assert [place.name for place in Place] == [
        *("PATIENCE", "REWRITE", "READ", "PROTECT", "EXCHANGE", "PRECISION", "OUTPUT")
    ]


@pytest.mark.parametrize("outer", [p for p in Place if p is not Place.OUTPUT])
@pytest.mark.parametrize("inner", Place)
def test_a_mode_is_not_entered_below_one_that_must_see_calls_later(
    outer: Place, inner: Place
) -> None:
    with mode_at(outer):
        if inner > outer:
            with mode_at(inner):
                return
        with pytest.raises(RuntimeError) as caught, mode_at(inner):
            pass
    assert str(caught.value) == (
        f"Watching ({inner.name}) cannot be entered inside Watching ({outer.name}); enter one of "
        "each place, in the order PATIENCE, REWRITE, READ, PROTECT, EXCHANGE, PRECISION, OUTPUT"
    )
    with mode_at(inner):  # nothing was left on the stack
        pass


@pytest.mark.parametrize("inner", Place)
def test_a_step_may_measure_something_itself(inner: Place) -> None:
    SEEN.clear()
    with mode_at(Place.REWRITE), mode_at(Place.OUTPUT), mode_at(inner):
        torch.zeros(1)
    assert [inner, Place.OUTPUT, Place.REWRITE] == SEEN


def test_modes_of_pytorch_may_be_anywhere() -> None:
    with (
        torch.device("cpu"),
        CheaperDerivatives(),
        torch.device("cpu"),
        LayerRecorder({}),
        torch.device("meta"),
    ):
        assert torch.zeros(1).device.type == "meta"


def test_two_readers_cannot_be_on() -> None:
    weights = Weights({}, torch.Generator())
    with LayerRecorder({}), pytest.raises(RuntimeError, match="cannot be entered inside LayerRec"):
        SurrogateMode({}, weights).__enter__()


def test_a_function_has_one_name() -> None:
    names = {
        torch.relu,
        torch.relu_,
        torch.Tensor.relu,
        torch.Tensor.relu_,
        torch.nn.functional.relu,
    }
    assert {name_of(f) for f in names} == {"relu"}
    assert name_of(torch.Tensor.__rmatmul__) == "rmatmul"
