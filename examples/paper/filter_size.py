"""Filter size: the rank rises with it, until the network is all but fully connected.

    python examples/paper/filter_size.py

Linear CNNs of one hidden layer. In one dimension (d = 12 inputs, m = 4 channels, K = 2 outputs,
Gaussian data, squared error, no biases) a filter of size 1 learns a single number for each channel,
one of size 12 is a fully connected layer. On digits the corners of the image are dead pixels, which
take directions away; the shape of the curve stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import Setting, chain, digits, family, gaussian
from pictures import Panel, picture_path, show
from torch import nn


def one_dimensional(sizes: Sequence[int] = (1, 2, 3, 5, 7, 9, 12)) -> list[Setting]:
    """Twelve inputs, 4 channels, two outputs."""

    def network(size: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(1, 4, size, bias=False), chain([4 * (13 - size), 2]))

    return family(sizes, network, "MSE", gaussian(100, (1, 12), 2))


def on_digits(sizes: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8)) -> list[Setting]:
    """8×8 images, 4 channels, ten classes."""

    def network(size: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, size, bias=False), chain([4 * (9 - size) ** 2, 10]))

    return family(sizes, network, "cross-entropy", digits(300))


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    panels = [
        Panel("Gaussian, d = 12, 4 channels, K = 2, MSE", "filter size k", one_dimensional()),
        Panel("digits 8×8, 4 channels, K = 10, cross-entropy", "filter size k", on_digits()),
    ]
    about = "linear CNNs, one convolution and a linear head, no biases"
    show(panels, "Rank against filter size", about, path)


if __name__ == "__main__":
    main()
