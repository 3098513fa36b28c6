"""The curvature of the loss by the outputs, sample by sample, and whether a shortcut was right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.hessian.graph import Graph

#: More outputs a sample than these are not tried.
MAX_OUTPUTS = 256


class Root(NamedTuple):
    """``∇²ℓ_n = Σ_j signs[j, n] · vectors[j, n] vectors[j, n]ᵀ`` for every sample ``n``."""

    vectors: Tensor
    """Shape ``(J, *output.shape)``; ``J`` is 0 where the loss is flat in the output."""
    signs: Tensor
    """Shape ``(J, N)``."""


def outputs_per_sample(graph: Graph) -> int | None:
    """How many numbers a sample has in the output; ``None`` if too many, or not one output."""
    if len(graph.outputs) != 1 or graph.outputs[0].ndim < 1 or not len(graph.outputs[0]):
        return None
    size = graph.outputs[0][0].numel()
    return size if size <= MAX_OUTPUTS else None


def root_of_loss(graph: Graph) -> Root | None:
    """Return the root of ``∇²ℓ``; ``None`` if that is not finite.

    Taken to be block diagonal over samples: what is made of it has to be checked. There must be
    :func:`outputs_per_sample`.
    """
    output = graph.outputs[0]
    samples, size = output.shape[0], output[0].numel()
    unit = torch.eye(size, dtype=output.dtype, device=output.device)
    directions = unit[:, None].expand(-1, samples, -1).reshape(size, *output.shape)
    curvature = graph.bend([directions])[0].reshape(size, samples, size).transpose(0, 1)
    if not bool(torch.isfinite(curvature).all()):
        return None
    values, vectors = torch.linalg.eigh((curvature + curvature.transpose(1, 2)) / 2)
    noise = 8 * size * torch.finfo(output.dtype).eps * values.abs().max()
    kept = values.abs().amax(dim=0) > noise
    root = (vectors * values.abs().sqrt()[:, None, :])[:, :, kept]
    signs = torch.where(values.abs() > noise, values.sign(), 0.0)[:, kept]
    return Root(root.permute(2, 0, 1).reshape(-1, *output.shape), signs.T)


def agrees(found: Tensor, products: Tensor) -> bool:
    """Whether a shortcut's products with Gaussian vectors are the true ones, to machine precision.

    For a matrix ``E`` and a Gaussian ``v``, ``‖Ev‖`` is about ``‖E‖_F``. With ``‖H‖_F / √p`` for
    ``max|λ|``, which is at least that, the error has to stay below the cut ``p · eps · max|λ|``
    under which a rank at machine precision sees nothing. (Small matrices get a little more:
    45 eps of ``‖H‖_F``. What is right was seen to differ by up to 14.)

    Args:
        found: products of the matrix that the shortcut made, shape ``(p, k)``.
        products: of the true matrix with the same vectors.
    """
    rtol = max(len(found) ** 0.5, 45) * torch.finfo(found.dtype).eps
    error = torch.linalg.vector_norm(found - products)
    return bool(error <= rtol * torch.linalg.vector_norm(products))


def random_vectors(size: int, like: Tensor) -> Tensor:
    """Return two Gaussian vectors, shape ``(size, 2)``, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 2, generator=generator, dtype=torch.float64).to(like)
