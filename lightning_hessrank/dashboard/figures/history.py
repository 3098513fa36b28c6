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


def history_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
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
        steps = [r["step"] for r in history]
        marker = "o" if len(history) <= 30 else None
        ranks = [r["rank"] for r in history]
        axes.plot(steps, ranks, color=style.RANK, marker=marker, ms=3.5, label="rank")
        if any("rank_lower" in r for r in history):
            low, high = (
                [r.get(f"rank_{x}", math.nan) for r in history] for x in ("lower", "upper")
            )
            axes.vlines(steps, low, high, color=style.RANK, alpha=0.6, lw=1.2)
            axes.fill_between(steps, low, high, color=style.RANK, alpha=0.2, lw=0)
        drawn = list(ranks)
        for rtol, colour, line in ((1e-3, style.OUTER, "-."), (1e-1, style.NEGATIVE, (0, (1, 1)))):
            counts = [_count(r, rtol) for r in history]
            if not all(math.isnan(c) for c in counts) and counts != ranks:
                label = f"at {style.scientific(rtol)}" if rtol < 0.01 else "at 1e-1"
                axes.plot(steps, counts, color=colour, ls=line, marker=marker, ms=2.5, label=label)
                drawn += counts
        bounds = [r["bound"] for r in history if r.get("bound") is not None]
        if bounds:
            worth = validity(bool(history[-1].get("bound_is_theorem")))
            level = [r.get("bound", math.nan) for r in history]
            axes.plot(steps, level, color=style.BOUND, ls="--", lw=1.5, label=f"bound ({worth})")
            if len(history) == 1:
                axes.axhline(bounds[0], color=style.BOUND, ls="--", lw=1.5)
            drawn += bounds
        _scale(axes, drawn)
        axes.set_xlabel("step")
        if len(history) == 1:
            axes.set_xticks(steps)
        else:
            axes.locator_params(axis="x", nbins=6, integer=True)
        style.key(figure, axes)
        return figure


def _headings(history: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
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


def _count(record: Mapping[str, Any], rtol: float) -> float:
    for known, count in record["counts"].items():
        if math.isclose(known, rtol, rel_tol=1e-9):
            return float(count)
    return math.nan


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Take a logarithmic axis where a linear one would press small counts to the floor."""
    positive = [v for v in values if v > 0]
    if positive and max(positive) > 50 * min(positive):
        zero = any(v == 0 for v in values)
        axes.set_yscale("symlog", linthresh=1) if zero else axes.set_yscale("log")
        axes.set_ylim(0 if zero else 0.7 * min(positive), 1.5 * max(positive))
        axes.minorticks_off()
    else:
        axes.set_ylim(0, 1.08 * max(positive, default=1.0))
        axes.locator_params(axis="y", nbins=6, integer=True)
    axes.yaxis.set_major_formatter(lambda y, _: style.magnitude(y))
