"""Pooling: averaging merges patches, and the rank falls with the number of positions left.

    python examples/paper/pooling.py

One 3×3 convolution, pooling with windows of 1, 2, 3 and 6 (the whole map), a linear head. Average
pooling is linear: the bound is a theorem. Maximum pooling is not: its bound, that of the average in
its place, is a reference line, which the outer part exceeds at every window and the whole once.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import Setting, chain, digits, family
from pictures import Panel, picture_path, show
from torch import nn

SIZES = (1, 2, 3, 6)


def pooled(kind: type[nn.Module], sizes: Sequence[int] = SIZES) -> list[Setting]:
    """Digits, 6 channels, ten classes."""

    def network(size: int) -> nn.Module:
        head = chain([6 * (6 // size) ** 2, 10])
        return nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), kind(size), head)

    return family(sizes, network, "cross-entropy", digits(300))


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    panels = [
        Panel("average pooling: the bound is a theorem", "window", pooled(nn.AvgPool2d)),
        Panel("maximum pooling: a reference line", "window", pooled(nn.MaxPool2d)),
    ]
    about = "digits, 3×3 convolution with 6 channels, pooling, head, cross-entropy, no biases"
    show(panels, "Rank against pooling", about, path)


if __name__ == "__main__":
    main()
