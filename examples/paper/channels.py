"""Channels: rank, bound and √p. Twice the channels, four times the parameters, twice the rank.

    python examples/paper/channels.py
    python examples/paper/channels.py --channels 2,4,8

Linear CNNs on 300 digits, cross-entropy: two 3×3 convolutions with pooling between them, and a
head. The rank grows like √p (Singh, Hofmann, Schölkopf, arXiv 2305.09088). It is found by a sketch
a few columns wider than the bound, which is a theorem here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common import Case, Setting, chain, digits, family, measure, print_cases
from pictures import IMAGES, legend, save, sheet
from torch import nn

from lightning_hessrank.dashboard.figures import style
from lightning_hessrank.dashboard.figures.growth import Growth, root_fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANNELS = (2, 4, 8, 12, 16, 20, 24)


def network(channels: int) -> nn.Sequential:
    """Linear CNN on 8×8 images."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, bias=False),
        nn.AvgPool2d(2),
        nn.Conv2d(channels, channels, 3, bias=False),
        chain([channels, 10]),
    )


def growing(channels: Sequence[int] = CHANNELS) -> list[Setting]:
    """The family of networks."""
    return family(channels, network, "cross-entropy", digits(300))


def draw(cases: Sequence[Case]) -> Figure:
    """Draw rank, bound and √p (scaled to the last rank) against the channels."""
    channels = [float(c.name) for c in cases]
    scale = cases[-1].rank / cases[-1].parameters ** 0.5
    roots = [scale * c.parameters**0.5 for c in cases]
    with style.styled():
        figure, (axes,) = sheet("Rank grows like √p", "linear CNNs on digits, exact ranks")
        parameters = [c.parameters for c in cases]
        axes.plot(channels, parameters, ":", color=style.TOLERANCE, lw=1.3, label="p")
        bounds = [c.bound.total for c in cases]
        axes.plot(channels, bounds, color=style.BOUND, lw=1.4, label="bound")
        axes.plot(channels, roots, "--", color=style.OUTER, lw=1.3, label=f"{scale:.1f} √p")
        axes.plot(channels, [c.rank for c in cases], "o", color=style.RANK, ms=4.5, label="rank")
        axes.set(xlabel="channels of both convolutions", ylim=(0, 1.25 * max(bounds)))
        about = "two 3×3 convolutions, cross-entropy, no biases"
        axes.set_title(about, fontsize=8.5, loc="left", color=style.TEXT)
        axes.yaxis.set_major_formatter(lambda y, _: style.magnitude(y))
        legend(figure, axes)
    return figure


def main(argv: Sequence[str] | None = None) -> list[Case]:
    """Measure the family, print a table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--channels", default=",".join(map(str, CHANNELS)))
    parser.add_argument("--output", type=Path, default=IMAGES, metavar="DIR")
    arguments = parser.parse_args(argv)
    cases = []
    for setting in growing(tuple(map(int, arguments.channels.split(",")))):
        # For the small ones, which have nearly full rank, a sketch would not pay.
        method: Literal["dense", "sketch"] = "dense" if setting.name <= 8 else "sketch"
        cases.append(measure(setting, parts=False, method=method))
    print_cases("digits, cross-entropy, two convolutions", "channels", cases)
    fit = root_fit([Growth(c.parameters, c.rank) for c in cases])
    print(f"rank ≈ {fit.factor:.1f} √p; rank ~ p^{fit.exponent:.2f}")
    save(draw(cases), arguments.output / "channels.png")
    return cases


if __name__ == "__main__":
    main()
