"""Rank, bound and √p against the number of channels: linear CNNs on scikit-learn's digits.

    python examples/channel_growth.py            # about a minute; writes channel_growth.png
    python examples/channel_growth.py --channels 2,4,8

Twice the channels are four times the parameters, but only twice the rank of the loss Hessian: it
grows like √p (Singh, Hofmann, Schölkopf, arXiv 2305.09088). Every rank here is exact, at randomly
drawn weights, on 300 real images with the cross-entropy loss.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_hessrank import hessian_rank, rank_bound


class Point(NamedTuple):
    """One network of the family."""

    channels: int
    parameters: int
    rank: int | float
    bound: int


def network(channels: int) -> nn.Sequential:
    """Linear CNN on 8×8 images: two 3×3 convolutions, pooling between them, and a head."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, bias=False),
        nn.AvgPool2d(2),
        nn.Conv2d(channels, channels, 3, bias=False),
        nn.Flatten(),
        nn.Linear(channels, 10, bias=False),
    )


def digits(count: int = 300) -> tuple[Tensor, Tensor]:
    """The first images with their labels, pixels in [0, 1]."""
    data = load_digits()
    images = torch.tensor(data.images[:count]).unsqueeze(1) / 16
    return images, torch.tensor(data.target[:count])


def measure(channels: int) -> Point:
    """Exact rank and bound of one network."""
    torch.manual_seed(0)
    model, (images, labels) = network(channels).double(), digits()
    bound = rank_bound(model, images[:1], loss="cross_entropy", data=images)
    estimate = hessian_rank(
        model,
        nn.functional.cross_entropy,
        (images, labels),
        method="sketch",  # exact, or an error: no estimate, however slow the machine is today
        max_rank=bound.total,
    )
    return Point(channels, bound.num_parameters, estimate.rank, bound.total)


def draw(points: list[Point], path: Path) -> None:
    """Draw rank, bound and √p (scaled to the last rank) against the channels."""
    channels = [x.channels for x in points]
    scale = points[-1].rank / points[-1].parameters ** 0.5
    figure = Figure(figsize=(5.2, 3.4), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.plot(channels, [x.parameters for x in points], "s:", color="0.6", label="parameters p")
    axes.plot(channels, [x.bound for x in points], "-", color="#D55E00", label="bound")
    axes.plot(channels, [x.rank for x in points], "o", color="#0072B2", label="rank (exact)")
    axes.plot(
        channels,
        [scale * x.parameters**0.5 for x in points],
        "--",
        color="#009E73",
        label=f"{scale:.1f} √p",
    )
    axes.set_ylim(0, 2.2 * points[-1].rank)
    axes.set_xlabel("channels of both convolutions")
    axes.set_ylabel("rank of the loss Hessian")
    axes.set_title("Linear CNNs on digits: rank grows like √p", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path)


def main() -> list[Point]:
    """Measure the family, print a table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", default="2,4,8,12,16,20,24")
    parser.add_argument("--output", type=Path, default=Path("channel_growth.png"))
    arguments = parser.parse_args()
    print(f"{'channels':>8} {'parameters':>10} {'√p':>6} {'rank':>6} {'bound':>6}")
    points = []
    for channels in map(int, arguments.channels.split(",")):
        points.append(measure(channels))
        x = points[-1]
        root = x.parameters**0.5
        print(f"{x.channels:>8} {x.parameters:>10,} {root:>6.1f} {x.rank:>6,} {x.bound:>6,}")
    draw(points, arguments.output)
    print(f"drawn into {arguments.output}")
    return points


if __name__ == "__main__":
    main()
