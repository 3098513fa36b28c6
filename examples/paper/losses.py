"""Losses: squared error and log cosh see all outputs, softmax cross-entropy all but one.

    python examples/paper/losses.py

Linear networks on digits, fully connected and convolutional. Of the loss the rank knows one number
only, the effective outputs K': 10 for squared error and for log cosh, 9 for cross-entropy, which
does not see a shift common to all logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import LOSSES, Setting, chain, digits, drawn
from pictures import Panel, picture_path, show
from torch import nn


def fully_connected() -> nn.Module:
    """64-20-10."""
    return chain([64, 20, 10])


def convolutional() -> nn.Module:
    """Two 3×3 convolutions of 8 channels with pooling between them, and a head."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, bias=False),
        chain([8, 10]),
    )


def losses(model: nn.Module, count: int = 300) -> list[Setting]:
    """The same network under each loss."""
    return [Setting(loss, model, loss, *digits(count, loss)) for loss in LOSSES]


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    panels = [
        Panel("fully connected 64-20-10", "loss", losses(drawn(fully_connected))),
        Panel("two convolutions of 8 channels", "loss", losses(drawn(convolutional))),
    ]
    show(panels, "Rank under three losses", "linear networks on digits, no biases", path)


if __name__ == "__main__":
    main()
