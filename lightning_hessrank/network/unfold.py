"""Where the taps of a kernel read: ``z[n, m, s] = Σ_{c, t} W[m, c, t] · a[n, c, places[t, s]]``.

With taps ``t`` and positions ``s``; the places of an image are flattened into one dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """How a kernel walks over an image; one entry for every spatial dimension."""

    size: tuple[int, ...]
    """Of the image."""
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    """Zeros before and after."""
    dilation: tuple[int, ...]

    @classmethod
    def pointwise(cls, places: int) -> Geometry:
        """One tap that reads every place once, as a linear layer does."""
        return cls((places,), (1,), (1,), ((0, 0),), (1,))

    @property
    def positions(self) -> tuple[int, ...]:
        """Shape of the output images."""
        geometry = (self.size, self.kernel, self.stride, self.dilation, self.padding)
        return tuple(
            (size + sum(zeros) - spread * (taps - 1) - 1) // step + 1
            for size, taps, step, spread, zeros in zip(*geometry, strict=True)
        )

    @cached_property
    def places(self) -> Tensor:
        """Where in a flattened image each tap finds its number, shape ``(taps, positions)``, int64.

        In the padding that is one beyond the last.
        """
        count = torch.Size(self.size).numel()
        places = torch.arange(count).view(1, 1, *self.size)
        padding = [zeros for pair in reversed(self.padding) for zeros in pair]
        places = F.pad(places, padding, value=count)[0, 0]
        steps = zip(self.kernel, self.stride, self.dilation, strict=True)
        for dim, (taps, step, spread) in enumerate(steps):
            places = places.unfold(dim, spread * (taps - 1) + 1, step)[..., ::spread]
        dims = len(self.size)
        return places.flatten(dims).flatten(0, dims - 1).T


def unfold(images: Tensor, places: Tensor, dim: int) -> Tensor:
    """Replace dimension ``dim``, the places of an image, by two: taps and positions.

    Args:
        images: with all spatial dimensions flattened into one.
        places: as :attr:`Geometry.places` has them.
        dim: not negative.
    """
    size = images.shape[dim]
    if len(places) == 1 and torch.equal(places[0], torch.arange(size, device=places.device)):
        return images.unsqueeze(dim)
    if bool((places == size).any()):
        zero = images.new_zeros(()).expand(*images.shape[:dim], 1, *images.shape[dim + 1 :])
        images = torch.cat([images, zero], dim)
    return images.index_select(dim, places.flatten()).unflatten(dim, places.shape)


def fold(signals: Tensor, places: Tensor, size: int) -> Tensor:
    """Put the number of every position where each tap found its own: the transpose of `unfold`.

    Args:
        signals: shape ``(…, positions)``.
        places: as :attr:`Geometry.places` has them.
        size: number of places of an image.

    Returns:
        Shape ``(…, taps, size)``.
    """
    shape = signals.shape[:-1]
    folded = signals.new_zeros(*shape, len(places), size + 1)  # the last for the padding
    index = places.expand(*shape, *places.shape)
    values = signals.unsqueeze(-2).expand(*shape, *places.shape)
    return folded.scatter_add_(-1, index, values)[..., :size]


def convolution_geometry(
    image: Tensor,
    weight: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Geometry | None:
    """Geometry of a call of ``conv1d``, ``conv2d`` or ``conv3d``, with its arguments.

    ``None`` where the input is not a batch of ordinary tensors, or PyTorch will refuse the call.
    """
    dims, kernel = weight.ndim - 2, tuple(weight.shape[2:])
    steps, spread = _each(stride, dims), _each(dilation, dims)
    if image.ndim != weight.ndim or not (is_plain(image) and is_plain(weight)):
        return None
    if padding == "same" and set(steps) != {1}:
        return None
    if padding == "same":  # the odd one comes after, as PyTorch has it
        totals = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
        zeros = tuple((total // 2, total - total // 2) for total in totals)
    else:
        assert not isinstance(padding, str) or padding == "valid"
        zeros = tuple((p, p) for p in _each(0 if isinstance(padding, str) else padding, dims))
    return Geometry(tuple(image.shape[2:]), kernel, steps, zeros, spread)


def is_plain(x: Tensor) -> bool:
    """Whether a tensor is real and strided, neither sparse nor nested."""
    return x.layout == torch.strided and not x.is_nested and x.is_floating_point()


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values
