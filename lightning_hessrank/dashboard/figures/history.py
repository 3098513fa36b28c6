"""The figure of a run: what the rank did, beside the bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_hessrank.dashboard.figures import style
from lightning_hessrank.results import validity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]

#: Counts drawn beside the rank: tolerance, its label, colour and line style.
_COARSER: tuple[tuple[float, str, str, Any], ...] = (
    (1e-3, "at 1e-3", style.OUTER, "-."),
    (1e-1, "at 1e-1", style.NEGATIVE, (0, (1, 1))),
)
#: Measurements beyond which dots would melt into a line.
_MAX_DOTS = 30


def history_figure(history: Records) -> Figure:
    """Draw rank, counts at 1e-3 and 1e-1 and the bound over the steps of a run.

    An estimated rank has its 95 % interval as a band. A failed measurement leaves a gap.

    Args:
        history: ``monitor.history``, one record per measurement.
    """
    with style.styled():
        figure, axes = style.card(*_headings(history))
        if not history:
            style.message(axes, "no measurement yet")
            return figure
        drawn = _draw_ranks(axes, history)
        upper = [r["rank_upper"] for r in history if "rank_upper" in r]
        drawn += _draw_bound(axes, history, ceiling=3 * max(upper) if upper else math.inf)
        _scale(axes, drawn)
        axes.set_xlabel("step")
        if len(history) == 1:
            axes.set_xticks([history[0]["step"]])
        else:
            axes.locator_params(axis="x", nbins=6, integer=True)
        axes.xaxis.set_major_formatter(lambda x, _: style.magnitude(x))
        style.key(figure, axes)
        return figure


def _headings(history: Records) -> tuple[str, str]:
    if not history:
        return "Rank of the loss Hessian", ""
    first, last = history[0], history[-1]
    change = style.number(last["rank"])
    if len(history) > 1:
        change = f"{style.number(first['rank'])} → {change}"
    how = f"{last['method']}, tolerance {style.scientific(last['rtol'])} · max |λ|"
    if any("rank_lower" in r for r in history):
        how += ", 95 % interval"
    return f"Rank {change} of {last['num_parameters']:,} parameters", how


def _draw_ranks(axes: Axes, history: Records) -> list[float]:
    """Draw the rank, with its interval, and the counts at coarser tolerances; return them all."""
    steps, ranks = [r["step"] for r in history], [float(r["rank"]) for r in history]
    marker = "o" if len(history) <= _MAX_DOTS else None
    axes.plot(steps, ranks, color=style.RANK, marker=marker, ms=3.5, label="rank")
    drawn = list(ranks)
    if any("rank_lower" in r for r in history):
        low, high = (
            [r.get(f"rank_{end}", math.nan) for r in history] for end in ("lower", "upper")
        )
        axes.fill_between(steps, low, high, color=style.RANK, alpha=0.2, lw=0)
        axes.vlines(steps, low, high, color=style.RANK, alpha=0.6, lw=1.2)
        drawn += high
    for rtol, label, colour, line in _COARSER:
        counts = [_count(r, rtol) for r in history]
        if history[-1]["rtol"] < rtol and not all(map(math.isnan, counts)):
            axes.plot(steps, counts, color=colour, ls=line, marker=marker, ms=2.5, label=label)
            drawn += counts
    return drawn


def _draw_bound(axes: Axes, history: Records, ceiling: float) -> list[float]:
    """Draw the bound, or only name it where it would press an interval flat; return its values."""
    levels = [float(r.get("bound", math.nan)) for r in history]
    known = [level for level in levels if not math.isnan(level)]
    if not known:
        return []
    worth = validity(bool(history[-1].get("bound_is_theorem")))
    above = known[-1] > ceiling
    label = f"bound {style.magnitude(known[-1])}, above ({worth})" if above else f"bound ({worth})"
    steps = [r["step"] for r in history]
    axes.plot(
        *([], []) if above else (steps, levels), color=style.BOUND, ls="--", lw=1.5, label=label
    )
    if len(history) == 1 and not above:
        axes.axhline(known[0], color=style.BOUND, ls="--", lw=1.5)
    return [] if above else known


def _count(record: Mapping[str, Any], rtol: float) -> float:
    for known, count in record["counts"].items():
        if math.isclose(known, rtol, rel_tol=1e-9):
            return float(count)
    return math.nan


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Take a logarithmic axis where a linear one would press small counts to the floor."""
    positive = [v for v in values if v > 0]
    if positive and max(positive) > 50 * min(positive):
        zero = 0.0 in values
        axes.set_yscale("symlog", linthresh=1) if zero else axes.set_yscale("log")
        axes.set_ylim(0 if zero else 0.7 * min(positive), 1.5 * max(positive))
        axes.minorticks_off()
    else:
        axes.set_ylim(0, 1.08 * max(positive, default=1.0))
        axes.locator_params(axis="y", nbins=6, integer=True)
    axes.yaxis.set_major_formatter(lambda y, _: style.magnitude(y))
