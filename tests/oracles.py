"""Independent ways to the same numbers: `torch.func.hessian` and the closed form."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian


def dense_hessian(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], pairs: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Hessian of the mean loss, by forward over reverse mode, of a float64 model."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    parameters = [dict(model.named_parameters())[n] for n in names]
    shapes = [p.shape for p in parameters]
    flat = torch.cat([p.detach().flatten() for p in parameters])
    total = sum(len(x) for x, _ in pairs)

    def loss(theta: Tensor) -> Tensor:
        pieces = theta.split([s.numel() for s in shapes])
        state = {n: v.view(s) for n, v, s in zip(names, pieces, shapes, strict=True)}
        losses = [
            loss_fn(functional_call(model, state, (x,)), y) * (len(x) / total) for x, y in pairs
        ]
        return torch.stack(losses).sum()

    return hessian(loss)(flat)


def closed_form(widths: Sequence[int], samples_rank: int, outputs: int) -> tuple[int, int, int]:
    """Ranks (outer, functional, total) of a linear chain without biases (arXiv 2106.16225)."""
    r, k, hidden = samples_rank, outputs, widths[1:-1]
    layers = len(widths) - 1
    parameters = sum(a * b for a, b in itertools.pairwise(widths))
    q, s = min(r, k, *hidden), min(r, k)
    outer = q * (r + k - q)
    functional = 2 * q * sum(hidden) + 2 * q * s - layers * q * q
    total = outer + functional + q * (q - 2 * s)
    return min(outer, parameters), min(functional, parameters), min(total, parameters)
