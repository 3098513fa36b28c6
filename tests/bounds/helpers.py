"""Dense Hessians of small networks by ``torch.func``: an oracle that shares no code with us."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from lightning_hessrank.bounding import network_of
from lightning_hessrank.network.losses import Network
from lightning_hessrank.tolerance import machine_rtol, numerical_rank


def module_network(module: nn.Module, example: Tensor) -> Network:
    """See a module, as it is, as a function of its inputs."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return network_of(lambda batch: (module(batch),), example, len(example), parameters)


LOSSES = {"mse": nn.functional.mse_loss, "cross_entropy": nn.functional.cross_entropy}


def targets_like(outputs: Tensor, loss: str) -> Tensor:
    """Generic targets: Gaussian, or random class probabilities."""
    noise = torch.randn_like(outputs)
    return noise if loss == "mse" else noise.softmax(1)


def curvature_parts(
    model: nn.Module, inputs: Tensor, loss: str = "mse", targets: Tensor | None = None
) -> dict[str, Tensor]:
    """Functional Hessian, Jacobian and loss curvature at the model's own weights."""
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    shapes = [p.shape for p in named.values()]
    theta = torch.cat([p.flatten() for p in named.values()])

    def outputs_at(vector: Tensor) -> Tensor:
        pieces = vector.split([s.numel() for s in shapes])
        values = [piece.reshape(s) for piece, s in zip(pieces, shapes, strict=True)]
        return functional_call(model, dict(zip(named, values, strict=True)), (inputs,))

    f = outputs_at(theta).detach()
    targets = targets_like(f, loss) if targets is None else targets

    def loss_of(f: Tensor) -> Tensor:
        return LOSSES[loss](f, targets)

    residual = grad(loss_of)(f)
    J = jacrev(outputs_at)(theta).reshape(f.numel(), -1)
    S = jacrev(grad(loss_of))(f).reshape(f.numel(), f.numel())
    functional = jacrev(grad(lambda v: (residual * outputs_at(v)).sum()))(theta)
    return {"functional": functional, "jacobian": J, "curvature": S}


def exact_ranks(model: nn.Module, inputs: Tensor, loss: str = "mse") -> dict[str, int]:
    """Ranks of the dense Hessian and its parts."""
    parts = curvature_parts(model, inputs, loss)
    functional, J, S = parts["functional"], parts["jacobian"], parts["curvature"]
    # The outer part from a factor: JᵀSJ itself has the squared condition number.
    values, vectors = torch.linalg.eigh(S)
    root = values.clamp(min=0).sqrt() * (values > 1e-12 * values.abs().max())
    return {
        "total": symmetric_rank(functional + J.T @ S @ J),
        "outer": matrix_rank(root[:, None] * (vectors.T @ J)),
        "functional": symmetric_rank(functional),
    }


def matrix_rank(matrix: Tensor) -> int:
    """Numerical rank of any matrix."""
    rtol = machine_rtol(max(matrix.shape))
    return numerical_rank(torch.linalg.svdvals(matrix), rtol).rank


def symmetric_rank(matrix: Tensor) -> int:
    """Numerical rank of a symmetric matrix."""
    return numerical_rank(torch.linalg.eigvalsh((matrix + matrix.T) / 2)).rank


def inputs_of_rank(count: int, features: int, rank: int) -> Tensor:
    """Gaussian data of a given rank."""
    return torch.randn(count, rank) @ torch.randn(rank, features)
