"""Dense Hessians of small networks by ``torch.func``: an oracle that shares no code with us."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from lightning_hessrank.tolerance import numerical_rank

LOSSES = {"mse": nn.functional.mse_loss, "cross_entropy": nn.functional.cross_entropy}


def targets_like(outputs: Tensor, loss: str) -> Tensor:
    """Generic targets: Gaussian, or random class probabilities."""
    noise = torch.randn_like(outputs)
    return noise if loss == "mse" else noise.softmax(1)


def hessians(model: nn.Module, inputs: Tensor, loss: str = "mse") -> dict[str, Tensor]:
    """Dense Hessian and its parts at the model's own weights, each part computed directly."""
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    shapes = [p.shape for p in named.values()]
    theta = torch.cat([p.flatten() for p in named.values()])

    def outputs_at(vector: Tensor) -> Tensor:
        pieces = vector.split([s.numel() for s in shapes])
        values = [piece.reshape(s) for piece, s in zip(pieces, shapes, strict=True)]
        return functional_call(model, dict(zip(named, values, strict=True)), (inputs,))

    f = outputs_at(theta).detach()
    targets = targets_like(f, loss)

    def loss_of(f: Tensor) -> Tensor:
        return LOSSES[loss](f, targets)

    residual = grad(loss_of)(f)
    J = jacrev(outputs_at)(theta).reshape(f.numel(), -1)
    S = jacrev(grad(loss_of))(f).reshape(f.numel(), f.numel())
    functional = jacrev(grad(lambda v: (residual * outputs_at(v)).sum()))(theta)
    outer = J.T @ S @ J
    return {"total": outer + functional, "outer": outer, "functional": functional}


def exact_ranks(model: nn.Module, inputs: Tensor, loss: str = "mse") -> dict[str, int]:
    """Ranks of the dense Hessian and its parts."""
    return {part: symmetric_rank(H) for part, H in hessians(model, inputs, loss).items()}


def symmetric_rank(matrix: Tensor) -> int:
    """Numerical rank of a symmetric matrix."""
    return numerical_rank(torch.linalg.eigvalsh((matrix + matrix.T) / 2)).rank


def inputs_of_rank(count: int, features: int, rank: int) -> Tensor:
    """Gaussian data of a given rank."""
    return torch.randn(count, rank) @ torch.randn(rank, features)
