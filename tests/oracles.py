"""Independent ways to the same numbers: dense Hessians by plain autograd, and the closed form."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian as autograd_hessian
from torch.func import functional_call, grad, jacrev

from lightning_hessrank.tolerance import machine_rtol, numerical_rank

LOSSES = {"mse": nn.functional.mse_loss, "cross_entropy": nn.functional.cross_entropy}


def dense_hessian(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], pairs: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Hessian of the mean loss, by plain autograd twice, of a float64 model.

    Not by ``torch.func``, whose Hessian of layer normalisation is not symmetric (by 4 %, PyTorch
    2.13).
    """
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

    found: Tensor = autograd_hessian(loss, flat)
    assert (found - found.T).norm() <= 1e-12 * found.norm()
    return found


def exact_rank(model: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor, y: Tensor) -> int:
    """Rank of the dense Hessian of a network as it is."""
    return symmetric_rank(dense_hessian(model, loss_fn, [(x, y)]))


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


def targets_like(outputs: Tensor, loss: str) -> Tensor:
    """Generic targets: Gaussian, or random class probabilities."""
    noise = torch.randn_like(outputs)
    return noise if loss == "mse" else noise.softmax(1)


def curvature_parts(
    model: nn.Module,
    inputs: Tensor,
    loss: str | Callable[..., Tensor] = "mse",
    targets: Tensor | None = None,
) -> dict[str, Tensor]:
    """Functional Hessian, Jacobian and loss curvature at the model's own weights.

    By reverse mode only: the forward derivative of layer normalisation's backward is wrong.
    """
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    shapes = [p.shape for p in named.values()]
    theta = torch.cat([p.flatten() for p in named.values()])

    def outputs_at(vector: Tensor) -> Tensor:
        pieces = vector.split([s.numel() for s in shapes])
        values = [piece.reshape(s) for piece, s in zip(pieces, shapes, strict=True)]
        return functional_call(model, dict(zip(named, values, strict=True)), (inputs,))

    f = outputs_at(theta).detach()
    if targets is None:
        targets = targets_like(f, str(loss))
    of_loss = LOSSES[loss] if isinstance(loss, str) else loss

    def loss_of(f: Tensor) -> Tensor:
        return of_loss(f, targets)

    residual = grad(loss_of)(f)
    J = jacrev(outputs_at)(theta).reshape(f.numel(), -1)
    S = jacrev(grad(loss_of))(f).reshape(f.numel(), f.numel())
    functional = jacrev(grad(lambda v: (residual * outputs_at(v)).sum()))(theta)
    return {"functional": functional, "jacobian": J, "curvature": S, "outputs": f}


def softmax_root(outputs: Tensor) -> Tensor:
    """``B`` with ``BᵀB = diag(π) - π πᵀ``, for every sample of outputs ``(N, K)``.

    An eigensolver mixes vectors of its tiny eigenvalues, where a softmax is nearly certain, with
    those of zero, by ``eps / λ``: that is a rank of rounding.
    """
    softmax = outputs.softmax(1)
    off = 1 - torch.eye(outputs.shape[1], dtype=outputs.dtype)
    others = softmax @ off  # 1 - π without cancellation
    return softmax.sqrt()[:, :, None] * (torch.diag_embed(others) - off * softmax[:, None, :])


def exact_ranks(
    model: nn.Module,
    inputs: Tensor,
    loss: str | Callable[..., Tensor] = "mse",
    targets: Tensor | None = None,
) -> dict[str, int]:
    """Ranks of the dense Hessian and its parts."""
    parts = curvature_parts(model, inputs, loss, targets)
    functional, J, S = parts["functional"], parts["jacobian"], parts["curvature"]
    # The outer part from a factor: JᵀSJ itself has the squared condition number.
    if loss in ("cross_entropy", nn.functional.cross_entropy) and parts["outputs"].ndim == 2:
        factor = softmax_root(parts["outputs"]) @ J.unflatten(0, parts["outputs"].shape)
        factor = factor.flatten(0, 1) / len(parts["outputs"]) ** 0.5
        outer = factor.T @ factor  # S itself, of numbers near 1, has lost digits
    else:
        values, vectors = torch.linalg.eigh(S)
        root = values.abs().sqrt() * (values.abs() > 1e-13 * values.abs().max())
        factor, outer = root[:, None] * (vectors.T @ J), J.T @ S @ J
    return {
        "total": symmetric_rank(functional + outer),
        "outer": matrix_rank(factor),
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
