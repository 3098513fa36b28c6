"""Rows: what becomes of second derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tests.system.rows.base import (
    REFUSED,
    Apply,
    Module,
    case,
    network,
)

DERIVATIVES = "derivatives"


def asymmetric(suspect: str) -> str:
    return (
        f"{REFUSED}: Hessian-vector products are not symmetric (vᵀHw and wᵀHv differ by * of "
        "‖Hv‖‖w‖), so what this step calls its gradient is not the derivative of its loss and no "
        f"rank is given; the suspects are the custom autograd functions {suspect}. Pass "
        "loss_fn=... that avoids them"
    )


def wrong(suspect: str) -> str:
    return (
        f"{REFUSED}: a Hessian-vector product disagrees with finite differences of the gradient at "
        "every step size (relative error * at best), so the second derivatives of this step are "
        f"wrong and no rank is given; the suspects are the custom autograd functions {suspect}. "
        "Pass loss_fn=... that avoids them"
    )


class Doubled(torch.autograd.Function):
    """The gradient of ``x³`` is right, its own derivative is lost on the way over ``.data``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0].data ** 2 * grad


class Once(Doubled):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


case(
    DERIVATIVES,
    "custom function whose second derivative is silently wrong",
    outcome=wrong("Doubled"),
)(lambda: network(nn.Linear(4, 3), Apply(Doubled.apply), nn.Linear(3, 3)))
case(
    DERIVATIVES,
    "custom function, `once_differentiable`",
    outcome=asymmetric("Once"),
)(lambda: network(nn.Linear(4, 3), Apply(Once.apply), nn.Linear(3, 3)))
for reentrant in (False, True):
    case(DERIVATIVES, f"gradient checkpointing, use_reentrant={reentrant}")(
        lambda reentrant=reentrant: network(
            nn.Linear(4, 3),
            Apply(lambda x: checkpoint(torch.tanh, x, use_reentrant=reentrant)),
            nn.Linear(3, 3),
        )
    )


@case(DERIVATIVES, "ReLU exactly on its kink (zero inputs, zero biases)")
def kink() -> Module:
    first = nn.Linear(4, 3)
    nn.init.zeros_(first.bias)
    return network(Apply(torch.zeros_like), first, nn.ReLU(), nn.Linear(3, 3))
