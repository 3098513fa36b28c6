"""Gates: the identity with its derivative, or none while they are closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_hessrank.network.gate import closed_gates, gate


def twice(x: Tensor) -> Tensor:
    """Depends on ``x`` through a gate and past it."""
    return (3 * gate(x) + x).pow(2).sum()


def test_an_open_gate_is_the_identity_to_every_order() -> None:
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(twice(x), x, create_graph=True)
    assert torch.equal(gate(x), x)
    assert torch.allclose(slope, 32 * x)
    assert torch.allclose(torch.autograd.grad(slope.sum(), x)[0], torch.full_like(x, 32))


def test_what_goes_past_a_closed_gate_is_differentiated() -> None:
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    loss = twice(x)
    with closed_gates():
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        assert torch.allclose(slope, 8 * x)
    assert torch.allclose(torch.autograd.grad(slope.sum(), x)[0], torch.full_like(x, 8))


def test_gates_open_again_after_an_error_and_stay_closed_within_closed_ones() -> None:
    x = torch.ones(2, requires_grad=True)

    def slope() -> Tensor | None:
        return torch.autograd.grad(gate(x).sum(), x, allow_unused=True)[0]

    def fail() -> None:
        with closed_gates():
            with closed_gates():
                assert slope() is None
            assert slope() is None
            raise ValueError("of mine")

    with pytest.raises(ValueError, match="of mine"):
        fail()
    opened = slope()
    assert opened is not None
    assert torch.equal(opened, torch.ones(2))


def test_modes_see_a_gate() -> None:
    seen: list[object] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        assert torch.equal(gate(torch.ones(2)), torch.ones(2))
    assert gate in seen
