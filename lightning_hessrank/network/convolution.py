"""A convolution as a product of its weights with patches of its input.

``z[n, m, s] = Σ_{c, t} W[m, c, t] · a[n, c, places[t, s]]`` with taps ``t`` and positions ``s``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: The functions that :func:`read_convolution` understands.
CONVOLUTIONS = frozenset({torch.conv1d, torch.conv2d, torch.conv3d})

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True, eq=False)
class Convolution:
    """A call of ``conv1d``, ``conv2d`` or ``conv3d`` on a batch."""

    input: Tensor
    """Shape ``(N, C, *spatial)``."""
    weight: Tensor
    """Shape ``(M, C / groups, *kernel)``."""
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    """Before and after, for every spatial dimension."""
    dilation: tuple[int, ...]
    groups: int

    @property
    def positions(self) -> tuple[int, ...]:
        """Shape of the output images."""
        geometry = (self.input.shape[2:], self.weight.shape[2:], self.stride, self.dilation)
        return tuple(
            (size + sum(zeros) - spread * (taps - 1) - 1) // step + 1
            for size, taps, step, spread, zeros in zip(*geometry, self.padding, strict=True)
        )

    def places(self) -> Tensor:
        """Where in a flattened image each tap finds its number, shape ``(taps, positions)``.

        In the padding that is one beyond the last.
        """
        spatial = self.input.shape[2:]
        places = torch.arange(spatial.numel()).view(1, 1, *spatial)
        padding = [zeros for pair in reversed(self.padding) for zeros in pair]
        places = F.pad(places, padding, value=spatial.numel())[0, 0]
        geometry = (self.weight.shape[2:], self.stride, self.dilation)
        for dim, (taps, step, spread) in enumerate(zip(*geometry, strict=True)):
            places = places.unfold(dim, spread * (taps - 1) + 1, step)[..., ::spread]
        return places.flatten(len(spatial)).flatten(0, len(spatial) - 1).T.to(self.input.device)


def unfold(images: Tensor, places: Tensor, dim: int) -> Tensor:
    """Replace dimension ``dim``, the places of an image, by two: taps and positions.

    Args:
        images: with all spatial dimensions flattened into one.
        places: as :meth:`Convolution.places` gives them.
        dim: not negative.
    """
    size = images.shape[dim]
    if len(places) == 1 and torch.equal(places[0], torch.arange(size, device=places.device)):
        return images.unsqueeze(dim)
    if bool((places == size).any()):
        zero = images.new_zeros(()).expand(*images.shape[:dim], 1, *images.shape[dim + 1 :])
        images = torch.cat([images, zero], dim)
    return images.index_select(dim, places.flatten()).unflatten(dim, places.shape)


def read_convolution(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Convolution | None:
    """Read the arguments of a call, or return ``None``.

    That is where the input is not a batch of ordinary tensors, or PyTorch will refuse the call.
    """
    call = dict(zip(_ARGUMENTS, args, strict=False)) | dict(kwargs)
    weight, dims = call["weight"], call["weight"].ndim - 2
    if call["input"].ndim != weight.ndim or not (is_plain(call["input"]) and is_plain(weight)):
        return None
    if call.get("padding") == "same" and set(_each(call.get("stride", 1), dims)) != {1}:
        return None
    dilation = _each(call.get("dilation", 1), dims)
    return Convolution(
        call["input"],
        weight,
        call.get("bias"),
        _each(call.get("stride", 1), dims),
        _padding(call.get("padding", 0), weight.shape[2:], dilation),
        dilation,
        call.get("groups", 1),
    )


def is_plain(x: Tensor) -> bool:
    """Whether a tensor is real and strided, neither sparse nor nested."""
    return x.layout == torch.strided and not x.is_nested and x.is_floating_point()


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _padding(
    padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Zeros before and after; ``"same"`` puts the odd one after, as PyTorch does."""
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in _each(padding, len(kernel)))
