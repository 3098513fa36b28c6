"""The same functions, written so that their second derivatives are cheap, or keep their digits.

Autograd differentiates some operations twice by slow general formulas: batch normalisation in
evaluation mode, for what is a scale and a shift a channel, and float64 convolutions on the CPU, for
which there is no fast kernel. Both are replaced while a loss is evaluated, by expressions of the
same value up to rounding.

The softmax of a network that is nearly certain has a curvature of ``p (1 - p)``, which autograd
subtracts from ``p``: at a loss of 1e-8 it has lost half of its digits, products are not symmetric,
and the curvature by the outputs has negative eigenvalues. Written relative to the largest logit it
is a sum of positive numbers, each with all of its digits.

Measured by ``python -m tests.benchmarks.engine shortcuts`` (one thread of an AMD EPYC, torch 2.13):
products of small convolutional networks in float64 1.3 (8 and 12 channels) and 4.1 times (142
channels) as fast, of ResNet-20 in float32, where it is the batch norms alone, 1.03 times. With many
positions a convolution's own kernels are as fast or faster: there they are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_hessrank.network.layers import Layer, read_layer
from lightning_hessrank.network.modes import OrderedMode, Place
from lightning_hessrank.network.unfold import unfold

#: Positions of its output up to which a convolution is written as a matrix product.
MAX_POSITIONS = 64
_CONVOLUTIONS = frozenset({torch.conv1d, torch.conv2d, torch.conv3d})
_LOG_SOFTMAX = frozenset({F.log_softmax, torch.log_softmax, Tensor.log_softmax})


class CheaperDerivatives(OrderedMode):
    """While active, calls that autograd differentiates slowly are replaced by equal expressions."""

    place = Place.REWRITE

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Replace the call, or let it pass."""
        if func is F.batch_norm:
            output = _batch_norm(*args, **kwargs)
        elif func in _CONVOLUTIONS:
            output = _convolution(read_layer(func, args, kwargs))
        elif func in _LOG_SOFTMAX:
            output = _log_softmax(*args, **kwargs)
        elif func is F.cross_entropy:
            output = _cross_entropy(*args, **kwargs)
        else:
            output = None
        return func(*args, **kwargs) if output is None else output


def _batch_norm(  # noqa: PLR0917 - the signature of F.batch_norm
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """``(x − mean) / sqrt(var + eps) · weight + bias`` with running statistics."""
    if training or running_mean is None or running_var is None or input.ndim < 2:
        return None
    if input.shape[1] != running_mean.numel() or running_mean.requires_grad:
        return None  # PyTorch says what is wrong
    shape = (-1, *(1,) * (input.ndim - 2))
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    output = (input - running_mean.view(shape)) * scale.view(shape)
    output = output if bias is None else output + bias.view(shape)
    return output.contiguous(memory_format=_memory_format(input))


def _convolution(layer: Layer | None) -> Tensor | None:
    """``W · patches``; ``None`` where the convolution's own kernels are as fast."""
    if layer is None or layer.geometry is None or layer.slices.groups > 1:
        return None
    a, weight, positions = layer.input, layer.weight, layer.geometry.positions
    if a.device.type != "cpu" or a.dtype != torch.float64 or math.prod(positions) > MAX_POSITIONS:
        return None
    if {_memory_format(x) for x in (a, weight)} != {torch.contiguous_format}:
        return None
    patches = unfold(a.flatten(2), layer.places(), dim=2).flatten(1, 2)
    output = torch.matmul(weight.flatten(1), patches).unflatten(2, positions)
    return output if layer.bias is None else layer.add_bias(output, layer.bias)


def _log_softmax(input: Tensor, dim: int | None = None, *_: Any, **given: Any) -> Tensor | None:
    """``d − log(1 + Σ exp d)``: differences ``d`` from the largest number, its own left out."""
    if dim is None or given.get("dtype") is not None or not input.is_floating_point():
        return None
    if not input.numel() or not input.ndim:
        return None
    top = input.argmax(dim, keepdim=True)
    # Zero without a gradient: one that is added and taken away again leaves its rounding error.
    largest = input.gather(dim, top)
    below = (input - largest).scatter(dim, top, 0.0)
    others = below.exp().scatter(dim, top, 0.0).sum(dim, keepdim=True)
    nothing = (largest - largest).detach()  # nan where that is infinite
    return below - (torch.log1p(others) + nothing)


def _cross_entropy(  # noqa: PLR0917 - the signature of F.cross_entropy
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """``nll_loss`` of :func:`_log_softmax`, of labels; probabilities are seldom so certain."""
    if (
        target.is_floating_point()
        or label_smoothing
        or size_average is not None
        or reduce is not None
    ):
        return None
    logarithm = _log_softmax(input, min(1, input.ndim - 1))
    if logarithm is None:
        return None
    return F.nll_loss(logarithm, target, weight, None, ignore_index, None, reduction)


def _memory_format(x: Tensor) -> torch.memory_format:
    """Layout that PyTorch's own kernels would give to what they make of ``x``: steps rely on it."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous():
        return last
    return torch.contiguous_format
