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
    """Draw rank and bound over the steps of a run, and beside them the counts at 1e-3 and 1e-1.

    The rank has a linear axis, on which a rise across the bound can be seen; the counts, which are
    far smaller, a logarithmic one. An estimated rank has its 95 % interval as a band. A failed
    measurement leaves a gap.

    Args:
        history: ``monitor.history``, one record per measurement.
    """
    coarser = [c for c in _COARSER if _has_counts(history, c[0])]
    with style.styled():
        figure, axes = style.card(*_headings(history), right=2.2 if coarser else 0.75)
        if not history:
            style.message(axes, "no measurement yet")
            return figure
        drawn = _draw_ranks(axes, history)
        upper = [r["rank_upper"] for r in history if "rank_upper" in r]
        drawn += _draw_bound(axes, history, ceiling=3 * max(upper) if upper else math.inf)
        _scale(axes, drawn)
        _name_ends(axes, history)
        panels = [axes]
        if coarser:
            panels.append(style.beside(figure, axes, gap=1.0, right=0.34))
            _draw_counts(panels[1], history, coarser)
        for panel in panels:
            _name_steps(panel, history, 4 if coarser else 6)
        style.key(figure, *panels)
        return figure


def _headings(history: Records) -> tuple[str, str]:
    if not history:
        return "Rank of the loss Hessian", ""
    first, last = history[0], history[-1]
    change = style.number(last["rank"])
    if len(history) > 1:
        change = f"{style.number(first['rank'])} → {change}"
    clear = style.clearness(last["gap"])
    title = f"Rank {change} of {last['num_parameters']:,} parameters{f', {clear}' if clear else ''}"
    how = f"{last['method']}, tolerance {style.scientific(last['rtol'])} · max |λ|"
    if any("rank_lower" in r for r in history):
        title = f"Estimated rank{title.removeprefix('Rank')}"
        how += ", 95 % interval"
    if "num_samples" in last:
        how += f", {last['num_samples']:,} samples"
    return title, f"{how}, {last['module_mode']}" if "module_mode" in last else how


def _draw_ranks(axes: Axes, history: Records) -> list[float]:
    """Draw the rank, with its interval; return all that was drawn."""
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
    return drawn


def _draw_counts(
    axes: Axes, history: Records, chosen: Sequence[tuple[float, str, str, Any]]
) -> None:
    """Draw the counts at coarser tolerances, on a logarithmic axis."""
    steps = [r["step"] for r in history]
    marker = "o" if len(history) <= _MAX_DOTS else None
    drawn: list[float] = []
    ends: dict[float, tuple[str, str]] = {}
    for rtol, label, colour, line in chosen:
        counts = [_count(r, rtol) for r in history]
        axes.plot(steps, counts, color=colour, ls=line, marker=marker, ms=2.5, label=label)
        drawn += counts
        if math.isfinite(counts[-1]):
            ends[counts[-1]] = (style.number(counts[-1]), colour)
    positive = [c for c in drawn if c > 0]
    axes.set_yscale("symlog", linthresh=1) if 0.0 in drawn else axes.set_yscale("log")
    if positive:
        axes.set_ylim(0 if 0.0 in drawn else 0.7 * min(positive), 1.5 * max(positive))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: style.magnitude(y))
    for count, (text, colour) in ends.items():
        style.name_end(axes, axes.get_xlim()[1], count, text, colour)


def _name_ends(axes: Axes, history: Records) -> None:
    """Write the last rank and the bound at the ends of their lines, one above the other."""
    last = history[-1]
    ends = [(float(last["rank"]), style.number(last["rank"]), style.RANK)]
    low, high = axes.get_ylim()
    bound = float(last.get("bound", math.nan))
    if low <= bound <= high:
        ends.append((bound, f"bound {style.magnitude(bound)}", style.BOUND))
    ends = sorted((end for end in ends if not math.isnan(end[0])), key=lambda end: end[0])
    inches = axes.get_position().height * style.SIZE[1]
    near = len(ends) == 2 and (ends[1][0] - ends[0][0]) / (high - low) * inches < 0.13
    for place, (y, text, colour) in enumerate(ends):
        lift = (4.5 if place else -4.5) if near else 0.0
        style.name_end(axes, axes.get_xlim()[1], y, text, colour, lift=lift)


def _name_steps(axes: Axes, history: Records, count: int) -> None:
    axes.set_xlabel("step", labelpad=1)
    if len(history) == 1:
        axes.set_xticks([history[0]["step"]])
    else:
        axes.locator_params(axis="x", nbins=count, integer=True)
    axes.xaxis.set_major_formatter(lambda x, _: style.magnitude(x))


def _has_counts(history: Records, rtol: float) -> bool:
    """Whether there are counts at this tolerance, other than the rank itself."""
    return (
        bool(history)
        and history[-1]["rtol"] < rtol
        and any(not math.isnan(_count(r, rtol)) for r in history)
    )


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
    """Begin at zero, unless that would press what moves into a line."""
    known = [v for v in values if math.isfinite(v)]
    least, most = min(known, default=0.0), max(known, default=1.0)
    room = 0.12 * (most - least)
    axes.set_ylim(
        *(least - room, most + room) if room and least > 0.4 * most else (0, 1.1 * most or 1)
    )
    axes.locator_params(axis="y", nbins=5, integer=True)
    axes.yaxis.set_major_formatter(lambda y, _: style.magnitude(y))
