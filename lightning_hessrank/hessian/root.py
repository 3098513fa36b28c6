"""The curvature of the loss by the outputs, sample by sample."""

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
