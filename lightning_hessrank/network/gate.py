"""A place in the graph of a step at which derivatives can be made to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary


@contextmanager
def closed_gates() -> Iterator[None]:
    """Let no derivative through any gate inside.

    Where one output of a network is computed from another (a decoder from a latent mean that the
    loss sees as well), the derivative of the loss alone by the latter must not take the way through
    the former.
    """
    before, Gate.closed = Gate.closed, True
    try:
        yield
    finally:
        Gate.closed = before


class Gate(torch.autograd.Function):
    """The identity; its derivative is the identity where gates are open, zero where not."""

    closed: ClassVar[bool] = False
    """Of the process: autograd differentiates in threads of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Copy."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        """Hand on the cotangent, or stop."""
        return None if Gate.closed else grad


def gate(x: Tensor) -> Tensor:
    """Return a copy of ``x`` behind a gate; function modes see the call."""
    if has_torch_function_unary(x):
        result: Tensor = handle_torch_function(gate, (x,), x)
        return result
    apply: Callable[[Tensor], Tensor] = Gate.apply
    return apply(x)
