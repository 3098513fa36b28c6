"""What a pair is, and how a model is called: every form has one meaning, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_hessrank.network.pairs import as_pairs, call

A, B, C, D = (torch.full((3, 1), float(i)) for i in range(4))


@pytest.mark.parametrize(
    ("data", "pairs"),
    [
        ((A, B), [(A, B)]),
        ((A, (B, C)), [(A, (B, C))]),
        (((A, B), C), [((A, B), C)]),
        (((A, B), (C, D)), [((A, B), (C, D))]),
        (({"x": A}, {"y": B}), [({"x": A}, {"y": B})]),
        ([A, B], [(A, B)]),  # as default collation has it
        ([(A, B), (C, D)], [(A, B), (C, D)]),
        ([[A, B]], [(A, B)]),
        ([(A, B)], [(A, B)]),
        (iter([(A, B), (C, D), (A, D)]), [(A, B), (C, D), (A, D)]),
    ],
)
def test_pairs(data: Any, pairs: list[tuple[Any, Any]]) -> None:
    assert str(as_pairs(data)) == str(pairs)  # by value: tensors have no truth


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([[A, B], [C, D]], ValueError, "list of two lists of two, .* pass a tuple"),
        ([], ValueError, "data has no batches"),
        (A, TypeError, "an iterable of such pairs, got Tensor"),
        ("xy", TypeError, "an iterable of such pairs, got str"),
        ({"inputs": A, "targets": B}, TypeError, "an iterable of such pairs, got dict"),
        (3, TypeError, "an iterable of such pairs, got int"),
        ([A, B, C], TypeError, "got an iterable of Tensor"),
    ],
)
def test_what_is_no_pair_is_refused(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_pairs(data)


class One(nn.Module):
    def forward(self, x: Any) -> str:
        return f"one {type(x).__name__}"


class Two(nn.Module):
    def forward(self, x: Any, y: Any) -> str:
        return f"two {x} {y}"


class Named(nn.Module):
    def forward(self, x: Any, *, scale: Any = 1) -> str:
        return f"named {x} {scale}"


class Anything(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> str:
        return f"any {args} {kwargs}"


@pytest.mark.parametrize(
    ("model", "inputs", "called"),
    [
        (One(), 1, "one int"),
        (One(), (1, 2), "one tuple"),
        (One(), {"a": 1}, "one dict"),
        (Two(), (1, 2), "two 1 2"),
        (Two(), [1, 2], "two 1 2"),
        (Two(), {"y": 1, "x": 2}, "two 2 1"),
        (Named(), {"x": 1, "scale": 2}, "named 1 2"),
        (Named(), {"x": 1, "unknown": 2}, "named {'x': 1, 'unknown': 2} 1"),
        (Anything(), (1, 2), "any (1, 2) {}"),
        (Anything(), {1: 2}, "any ({1: 2},) {}"),
    ],
)
def test_calls(model: nn.Module, inputs: Any, called: str) -> None:
    assert call(model, inputs) == called


def test_a_scripted_model_is_called_as_it_is() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    assert torch.equal(call(torch.jit.script(Double()), B), 2 * B)
