"""How the rank of a family of networks grows with their number of parameters: the √p picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_hessrank.dashboard.figures import style
from lightning_hessrank.results import validity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: With more marks than this, words beside them would hide each other.
_MAX_LABELS = 16


@dataclass(frozen=True)
class Growth:
    """One network of a family: its size, its rank, and its bound where there is one."""

    parameters: int
    rank: float
    bound: int | None = None
    is_theorem: bool = False
    label: str = ""
    """Written beside its mark."""


@dataclass(frozen=True)
class RootFit:
    """How a family grows: ``rank ≈ factor · √p``, and ``rank ~ p ** exponent``."""

    factor: float
    """Least squares through the origin: ``Σ rank √p / Σ p``."""
    exponent: float
    """Slope of log rank against log p by least squares; nan for fewer than two sizes. It is 0.5
    where the rank grows like √p, and 1 where it grows like p."""

    def at(self, parameters: int) -> float:
        """``factor · √p``."""
        return self.factor * math.sqrt(parameters)


def root_fit(family: Sequence[Growth]) -> RootFit:
    """Fit ``factor · √p`` and the exponent to the ranks of a family; ranks of 0 have no logarithm.

    Raises:
        ValueError: the family is empty.
    """
    if not family:
        raise ValueError("root_fit needs at least one network, got none")
    factor = sum(x.rank * math.sqrt(x.parameters) for x in family)
    factor /= sum(x.parameters for x in family)
    points = [(math.log(x.parameters), math.log(x.rank)) for x in family if x.rank > 0]
    return RootFit(factor, _slope(points))


def growth_figure(family: Sequence[Growth], title: str, subtitle: str) -> Figure:
    """Draw ranks and bounds against √p: growth like √p is a straight line through the origin.

    Raises:
        ValueError: the family is empty.
    """
    fit = root_fit(family)
    places = [math.sqrt(x.parameters) for x in family]
    bounds = [(x, y.bound) for x, y in zip(places, family, strict=True) if y.bound is not None]
    end = 1.08 * max(places)
    curve = [end * i / 100 for i in range(101)]
    with style.styled():
        figure, axes = style.card(title, subtitle, left=0.62)
        axes.plot(curve, [x * x for x in curve], ":", color=style.TOLERANCE, lw=1.3, label="p")
        line = [fit.factor * x for x in curve]
        axes.plot(curve, line, "--", color=style.OUTER, lw=1.3, label=f"{fit.factor:.3g} √p")
        if bounds:
            label = f"bound ({validity(all(x.is_theorem for x in family))})"
            where, totals = zip(*bounds, strict=True)
            axes.plot(where, totals, "_", color=style.BOUND, ms=11, mew=1.8, label=label)
        ranks = [x.rank for x in family]
        axes.plot(places, ranks, "o", color=style.RANK, ms=4, label="rank")
        if len(family) <= _MAX_LABELS:
            _label(axes, places, family)
        highest = max(1.0, *ranks, *(y for _, y in bounds))
        axes.set(xlabel="√p", ylabel="rank", xlim=(0, end), ylim=(0, 1.25 * highest))
        axes.yaxis.set_major_formatter(lambda y, _: style.magnitude(y))
        style.key(figure, axes)
    return figure


def _label(axes: Axes, places: Sequence[float], family: Sequence[Growth]) -> None:
    """Write beside each mark which network it is."""
    for x, network in zip(places, family, strict=True):
        axes.annotate(
            network.label,
            (x, network.rank),
            xytext=(4, -9),
            textcoords="offset points",
            fontsize=6.5,
            color=style.TEXT,
        )


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Slope of the least-squares line; nan where all abscissas are the same."""
    mean_x = sum(x for x, _ in points) / max(len(points), 1)
    mean_y = sum(y for _, y in points) / max(len(points), 1)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread == 0:
        return math.nan
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
