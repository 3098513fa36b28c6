"""Stride: fewer positions, fewer parameters, but no less rank for each of them.

    python examples/paper/stride.py

A stride leaves rows out of the Toeplitz matrix of a convolution. In one dimension filters of size 4
on d = 16 inputs move by 1 to 4: at a stride of 4 they no longer overlap. On digits two convolutions
follow each other, the first of which strides.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import Setting, chain, digits, family, gaussian
from pictures import Panel, picture_path, show
from torch import nn


def one_dimensional(strides: Sequence[int] = (1, 2, 3, 4)) -> list[Setting]:
    """Sixteen inputs, 4 channels, filters of size 4, three outputs."""

    def network(stride: int) -> nn.Module:
        convolution = nn.Conv1d(1, 4, 4, stride=stride, bias=False)
        return nn.Sequential(convolution, chain([4 * (12 // stride + 1), 3]))

    return family(strides, network, "MSE", gaussian(100, (1, 16), 3))


def on_digits(strides: Sequence[int] = (1, 2, 3)) -> list[Setting]:
    """8×8 images, 3×3 filters that stride, then 2×2 filters, 6 channels each, ten classes."""

    def network(stride: int) -> nn.Module:
        first = nn.Conv2d(1, 6, 3, stride=stride, bias=False)
        positions = 5 // stride
        return nn.Sequential(first, nn.Conv2d(6, 6, 2, bias=False), chain([6 * positions**2, 10]))

    return family(strides, network, "cross-entropy", digits(300))


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    panels = [
        Panel("Gaussian, d = 16, filter 4, K = 3, MSE", "stride", one_dimensional()),
        Panel("digits, filters 3×3 and 2×2, cross-entropy", "stride", on_digits()),
    ]
    show(panels, "Rank against stride", "linear CNNs without biases", path)


if __name__ == "__main__":
    main()
