"""A factor ``G`` of the outer-product Hessian, ``H_o = GᵀG``, with one row per sample and output.

Its Gram matrix ``GGᵀ`` has the nonzero eigenvalues of ``H_o`` at the size ``N K`` instead of ``p``,
where that is smaller. With ``∇²ℓ_n = L_n L_nᵀ``, row ``(n, j)`` of ``G`` is the gradient of
``⟨L_n[:, j], f_n⟩``: the gradient of one sample. Backpropagated one by one these would cost ``N K``
passes over the whole batch. But where samples do not interact, one pass with the cotangents of all
samples gives the signal ``δ_n`` at the output of every layer, and a layer that multiplies its
weights with patches ``a_n`` of its input has the gradients ``δ_n ⊗ a_n``: ``K`` passes in all.

That samples do not interact, and that the layers seen are all there is, is not assumed: the factor
is compared with true products along random directions, and dropped unless they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_hessrank.operators.graph import Graph

#: More outputs a sample than these are not tried.
MAX_OUTPUTS = 256
#: Relative difference from true products beyond which the factor is not believed.
AGREEMENT = 1e-8


class Layer(NamedTuple):
    """One multiplication of weights with an input."""

    weight: Tensor
    bias: Tensor | None
    output: Tensor
    """Shape ``(N, …, m)`` (linear) or ``(N, m, *positions)`` (convolution)."""
    patches: Callable[[], Tensor]
    """Returns what the weights multiply, shape ``(N, positions, c)``."""


class LayerRecorder(TorchFunctionMode):
    """Remembers the linear layers and two-dimensional convolutions that are called in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, and look at it."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.linear and output.ndim > 1:
            self.layers.append(_linear_layer(output, *args, **kwargs))
        elif func in (F.conv2d, torch.conv2d):
            layer = _conv_layer(output, *args, **kwargs)
            if layer is not None:
                self.layers.append(layer)
        return output


def _linear_layer(
    output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Layer:
    def patches() -> Tensor:
        return input.detach().reshape(input.shape[0], -1, input.shape[-1])

    return Layer(weight, bias, output, patches)


def _conv_layer(output: Tensor, *args: Any, **kwargs: Any) -> Layer | None:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    call = dict(zip(names, args, strict=False)) | kwargs
    input, weight, padding = call["input"], call["weight"], call.get("padding", 0)
    if call.get("groups", 1) != 1 or isinstance(padding, str) or input.ndim != 4:
        return None

    def patches() -> Tensor:
        unfolded = F.unfold(
            input.detach(),
            weight.shape[2:],
            dilation=call.get("dilation", 1),
            padding=padding,
            stride=call.get("stride", 1),
        )
        return unfolded.transpose(1, 2)

    return Layer(weight, call.get("bias"), output, patches)


def outer_factor(graph: Graph, layers: Sequence[Layer], indices: Sequence[int]) -> Tensor | None:
    """Return ``G`` for some parameters, shape ``(N * rank(∇²ℓ_n), p)``; ``None`` if there is none.

    Args:
        graph: of one evaluation.
        layers: what a :class:`LayerRecorder` saw during it.
        indices: numbers of the parameters.
    """
    if len(graph.outputs) != 1 or graph.outputs[0].ndim < 2:
        return None
    output = graph.outputs[0]
    samples, per_sample = output.shape[0], output[0].numel()
    parameters = [graph.parameters[i] for i in indices]
    used = _layers_of(layers, parameters, samples)
    if used is None or per_sample > MAX_OUTPUTS:
        return None
    root = _root_of_loss(graph, output, per_sample)
    if root is None:
        return None
    if len(root):
        signals = graph.batching.pull_back([output], [x.output for x in used], [root])
        factor = _rows(used, signals, parameters)
    else:  # the loss is flat in the output, as an absolute error is
        factor = output.new_zeros(0, sum(x.numel() for x in parameters))
    return factor if _agrees(graph, factor, indices) else None


def _layers_of(
    layers: Sequence[Layer], parameters: Sequence[Tensor], samples: int
) -> list[Layer] | None:
    """Those layers that own some of the parameters; ``None`` unless they own all of them."""
    wanted = {id(x) for x in parameters}
    used = [x for x in layers if id(x.weight) in wanted or id(x.bias) in wanted]
    owned = {id(x.weight) for x in used} | {id(x.bias) for x in used}
    if not wanted <= owned or any(x.output.shape[0] != samples for x in used):
        return None
    return used


def _root_of_loss(graph: Graph, output: Tensor, per_sample: int) -> Tensor | None:
    """``L_n[:, j]`` of all samples, shape ``(j, *output.shape)``; ``None`` if ∇²ℓ is indefinite."""
    samples = output.shape[0]
    unit = torch.eye(per_sample, dtype=output.dtype, device=output.device)
    directions = unit[:, None].expand(-1, samples, -1).reshape(per_sample, *output.shape)
    curvature = graph.bend([directions])[0].reshape(per_sample, samples, per_sample)
    curvature = curvature.transpose(0, 1)
    values, vectors = torch.linalg.eigh((curvature + curvature.transpose(1, 2)) / 2)
    noise = 8 * per_sample * torch.finfo(output.dtype).eps * float(values.abs().max())
    if float(values.min()) < -noise:
        return None
    root = vectors * values.clamp_min(0.0).sqrt()[:, None, :]
    root = root[:, :, values.max(dim=0).values > noise]
    return root.permute(2, 0, 1).reshape(-1, *output.shape)


def _rows(
    layers: Sequence[Layer], signals: Sequence[Tensor], parameters: Sequence[Tensor]
) -> Tensor:
    """Gradients of every sample for every signal, shape ``(j * N, p)``."""
    place = {id(x): i for i, x in enumerate(parameters)}
    count, samples = signals[0].shape[:2]
    blocks = [x.new_zeros(count * samples, x.numel()) for x in parameters]
    for layer, signal in zip(layers, signals, strict=True):
        linear = layer.weight.ndim == 2
        delta = (
            signal.reshape(count, samples, -1, layer.weight.shape[0])
            if linear
            else (signal.flatten(3).transpose(2, 3))
        )
        if id(layer.weight) in place:
            gradient = torch.einsum("jnpm,npc->jnmc", delta, layer.patches())
            blocks[place[id(layer.weight)]] += gradient.reshape(count * samples, -1)
        if layer.bias is not None and id(layer.bias) in place:
            blocks[place[id(layer.bias)]] += delta.sum(2).reshape(count * samples, -1)
    return torch.cat(blocks, dim=1)


def _agrees(graph: Graph, factor: Tensor, indices: Sequence[int]) -> bool:
    """Compare ``GᵀGv`` with true products for two random directions."""
    generator = torch.Generator().manual_seed(0)
    shapes = [graph.parameters[i].shape for i in indices]
    flat = torch.randn(2, factor.shape[1], generator=generator, dtype=torch.float64).to(factor)
    pieces = flat.split([s.numel() for s in shapes], dim=1)
    columns = {i: v.reshape(2, *s) for i, v, s in zip(indices, pieces, shapes, strict=True)}
    true = torch.cat([x.flatten(1) for x in graph.multiply("outer", columns, indices)], dim=1)
    error = (flat @ factor.T @ factor - true).abs().max()
    return bool(error <= AGREEMENT * true.abs().max())
