"""Biases: hardly more rank, for what they add is in part what the data can already tell apart.

    python examples/paper/bias.py

The same linear networks without and with a bias in every layer. A bias of the first layer is a
weight on an input that is always 1: the rank of the inputs becomes r + 1. The biases behind it add
one direction for each output, as long as no layer is narrower than the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common import Case, Setting, chain, digits, family, gaussian, measure, print_cases
from pictures import legend, picture_path, save, sheet
from torch import nn

from lightning_hessrank.dashboard.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def fully_connected(bias: bool, depths: Sequence[int] = (1, 2, 3, 4, 5)) -> list[Setting]:
    """Number of hidden layers of ten units, d = 16, K = 5."""
    data = gaussian(100, (16,), 5)
    return family(depths, lambda depth: chain([16, *[10] * depth, 5], bias=bias), "MSE", data)


def on_digits(bias: bool, channels: Sequence[int] = (2, 4, 6, 8, 10)) -> list[Setting]:
    """Channels of two 3×3 convolutions, ten classes."""

    def network(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, width, 3, bias=bias),
            nn.AvgPool2d(2),
            nn.Conv2d(width, width, 3, bias=bias),
            chain([width, 10], bias=bias),
        )

    return family(channels, network, "cross-entropy", digits(300))


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    panels = (
        ("fully connected, Gaussian, K = 5, MSE", "hidden layers", fully_connected),
        ("convolutional, digits, cross-entropy", "channels", on_digits),
    )
    with style.styled():
        about = "linear networks; lines: bounds"
        figure, axes = sheet("Rank with and without biases", about, len(panels))
        for ax, (title, label, settings) in zip(axes, panels, strict=True):
            for bias, colour in ((False, style.RANK), (True, style.NEGATIVE)):
                how = "with biases" if bias else "without biases"
                cases = [measure(setting) for setting in settings(bias)]
                print_cases(f"{title}, {how}", label, cases)
                draw(ax, cases, colour, how)
            ax.set(xlabel=label, ylim=(0, None))
            ax.set_title(title, fontsize=8.5, loc="left", color=style.TEXT)
            ax.locator_params(axis="x", integer=True)
        axes[0].set_ylabel("exact rank")
        legend(figure, axes[0])
    save(figure, path)


def draw(axes: Axes, cases: Sequence[Case], colour: str, label: str) -> None:
    """Draw exact ranks as marks, bounds as a line, parameters dotted."""
    places = [float(c.name) for c in cases]
    axes.plot(places, [c.bound.total for c in cases], color=colour, lw=1.2, alpha=0.6)
    axes.plot(places, [c.rank for c in cases], "o", color=colour, ms=4.5, label=f"rank {label}")
    axes.plot(places, [c.parameters for c in cases], ":", color=colour, lw=1.3, label=f"p {label}")


if __name__ == "__main__":
    main()
