"""Depth: every layer adds the same to the rank, and more than that to the parameters.

    python examples/paper/depth.py

Linear networks without biases. Fully connected, d = 16, ten units in every hidden layer, K = 5:
each further layer adds 2qM - q² = 75 to the rank and M² = 100 to the parameters. Convolutional, on
digits: each further 3×3 layer of 6 channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import Setting, chain, digits, family, gaussian
from pictures import Panel, picture_path, show
from torch import nn


def fully_connected(depths: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8)) -> list[Setting]:
    """Number of hidden layers of ten units, d = 16, K = 5."""
    data = gaussian(100, (16,), 5)
    return family(depths, lambda depth: chain([16, *[10] * depth, 5]), "MSE", data)


def on_digits(depths: Sequence[int] = (1, 2, 3)) -> list[Setting]:
    """Number of 3×3 convolutions of 6 channels, ten classes."""

    def network(depth: int) -> nn.Module:
        layers = [nn.Conv2d(1 if i == 0 else 6, 6, 3, bias=False) for i in range(depth)]
        return nn.Sequential(*layers, chain([6 * (8 - 2 * depth) ** 2, 10]))

    return family(depths, network, "cross-entropy", digits(300))


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    panels = [
        Panel("fully connected, Gaussian, K = 5, MSE", "hidden layers", fully_connected()),
        Panel("3×3 convolutions, digits, cross-entropy", "convolutions", on_digits()),
    ]
    show(panels, "Rank against depth", "linear networks without biases", path)


if __name__ == "__main__":
    main()
