"""Which layers a network applies: each multiplies a weight with patches of an activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_hessrank.network.convolution import (
    CONVOLUTIONS,
    Convolution,
    is_plain,
    read_convolution,
    unfold,
)


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear layer or convolution, as it was applied to a batch.

    In group ``g``, ``z[n, g, m, s] = Σ_c W[g, m, c] · patches[n, g, c, s]`` with output channels
    ``m``, positions ``s`` and, for ``c``, every pair of an input channel and a tap. A linear layer
    is a convolution with one tap over whatever dimensions lie between the samples and the features.
    """

    weight: Tensor
    bias: Tensor | None
    input: Tensor
    """``a``, as in the graph: shape ``(N, …, C)`` (linear) or ``(N, C, *spatial)``."""
    output: Tensor
    """``z``, as in the graph, bias included: ``(N, …, M)`` or ``(N, M, *positions)``."""
    convolution: Convolution | None = None

    @property
    def groups(self) -> int:
        """Of channels."""
        return 1 if self.convolution is None else self.convolution.groups

    @property
    def in_channels(self) -> int:
        """Of the input, all groups together."""
        return self.input.shape[-1 if self.convolution is None else 1]

    def channels_first(self, x: Tensor) -> Tensor:
        """Bring something of the input's or the output's shape into ``(B, channels, *spatial)``."""
        return x.movedim(-1, 1) if self.convolution is None else x

    def channels_as_they_are(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`channels_first`."""
        return x.movedim(1, -1) if self.convolution is None else x

    def places(self) -> Tensor:
        """Where among the places of its input each tap finds its number: ``(taps, positions)``."""
        if self.convolution is not None:
            return self.convolution.places()
        count = self.input.shape[1:-1].numel()
        return torch.arange(count, device=self.input.device).unsqueeze(0)

    def images(self, x: Tensor) -> Tensor:
        """Bring something of the input's or output's shape into ``(B, channels, places)``."""
        x = self.channels_first(x)
        return x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)

    def patches(self) -> Tensor:
        """Return what the weights multiply, shape ``(N, groups, c, positions)``."""
        patches = unfold(self.images(self.input.detach()), self.places(), dim=2)
        return patches.flatten(1, 2).unflatten(1, (self.groups, -1))

    def signals(self, cotangents: Tensor) -> Tensor:
        """Bring ``(k, N, …)`` of the output's shape into ``(k, N, groups, m, positions)``."""
        images = self.images(cotangents.flatten(0, 1)).unflatten(1, (self.groups, -1))
        return images.unflatten(0, cotangents.shape[:2])


class LayerRecorder(TorchFunctionMode):
    """While active, remembers the linear layers and convolutions that are called.

    What goes on is a copy of each output, so that the remembered one survives in-place activations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, and look at it."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.linear and (call := _linear_call(args, kwargs)) is not None:
            layer = Layer(call["weight"], call.get("bias"), call["input"], output)
        elif func in CONVOLUTIONS and (conv := read_convolution(args, kwargs)) is not None:
            layer = Layer(conv.weight, conv.bias, conv.input, output, conv)
        else:
            return output
        self.layers.append(layer)
        return output.clone()


def _linear_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments by name; ``None`` where the input is not a batch of ordinary tensors."""
    call = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
    plain = is_plain(call["input"]) and is_plain(call["weight"])
    return call if plain and call["input"].ndim > 1 and call["weight"].ndim == 2 else None
