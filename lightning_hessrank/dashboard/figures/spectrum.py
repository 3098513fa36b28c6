"""Figures of one Hessian: where its eigenvalues lie, and how many lie beyond the tolerance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lightning_hessrank.dashboard.figures import style
from lightning_hessrank.dashboard.tab.records import curve_points
from lightning_hessrank.results import RankBound, RankEstimate, validity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

#: More points than pixels show nothing.
_MAX_POINTS = 1500
#: Eigenvalues this far below the largest are drawn at the edge.
_FLOOR = 1e-20


def sorted_figure(estimate: RankEstimate, bound: RankBound | None = None) -> Figure:
    """Draw how the number of eigenvalues depends on the cut-off, with tolerance, rank and bound.

    The whole curve of ``|λ|`` in descending order where the method knows it; else the counts it
    has taken, which are points of the same curve.
    """
    with style.styled():
        figure, axes = style.card(_title(estimate), _how(estimate), left=0.7)
        if math.isnan(estimate.rank):
            style.message(axes, "no rank: the loss or its Hessian was not finite")
            return figure
        values = estimate.eigenvalues
        if values is not None and not bool(values.any()):
            style.message(axes, "all eigenvalues are zero")
            return figure
        limit = _horizon(estimate, bound)
        if values is not None:
            bottom = _draw_curve(axes, values, estimate.rtol, limit)
        else:
            bottom = _draw_counts(axes, estimate)
        axes.set(yscale="log", ylim=(bottom, 3.0))
        if estimate.rtol > 0:
            style.draw_tolerance(axes, estimate.rtol, along="y")
        low, high = estimate.interval
        if high > low:
            axes.axvspan(low, high, color=style.RANK, alpha=0.2, lw=0)
        label = f"rank {style.number(estimate.rank)}"
        axes.axvline(estimate.rank, color=style.RANK, lw=1.2, zorder=1, label=label)
        if bound is not None:
            label = f"bound {style.number(bound.total)} ({validity(bound.is_theorem)})"
            axes.axvline(bound.total, color=style.BOUND, ls="--", lw=1.4, label=label)
        _count_axis(axes, limit, wide=limit > 100 * estimate.rank > 0)
        axes.set_ylabel("|λ| / max |λ|")
        axes.yaxis.set_major_formatter(lambda y, _: style.power(y))
        axes.minorticks_off()
        style.key(figure, axes)
        return figure


def spectrum_figure(estimate: RankEstimate) -> Figure:
    """Draw the distribution of the eigenvalues: positive upwards, negative downwards.

    Raises:
        ValueError: the method has no eigenvalues.
    """
    values = estimate.eigenvalues
    if values is None:
        raise ValueError(f"the {estimate.method} method has no eigenvalues to draw; use 'dense'")
    with style.styled():
        figure, axes = style.card(_sign_title(estimate, values), _how(estimate), left=0.64)
        if not bool(values.any()):
            style.message(axes, "all eigenvalues are zero")
            return figure
        _draw_signs(axes, values, estimate.tolerance)
        axes.axhline(0, color=style.TEXT, lw=0.8)
        if estimate.tolerance > 0:
            style.draw_tolerance(axes, estimate.tolerance, along="x")
        axes.set(xlabel="|λ|", ylabel="per bin")
        axes.yaxis.set_major_formatter(lambda y, _: style.magnitude(abs(y)))
        axes.xaxis.set_major_formatter(lambda x, _: style.power(x))
        axes.minorticks_off()
        style.key(figure, axes)
        return figure


def _how(estimate: RankEstimate) -> str:
    """Say how the rank was obtained: it means nothing without."""
    text = f"{estimate.method}, tolerance {style.scientific(estimate.rtol)} · max |λ|"
    if estimate.gap is not None and math.isfinite(estimate.gap):
        text += f", gap {style.scientific(estimate.gap)} ({style.clearness(estimate.gap)})"
    return text


def _title(estimate: RankEstimate) -> str:
    low, high = estimate.interval
    rank = style.number(estimate.rank)
    if high > low:
        rank = f"{rank} ± {style.number((high - low) / 2)}"
    words = ["estimated"] if estimate.method == "lanczos" else []
    words += [] if estimate.part == "total" else [estimate.part]
    what = " ".join([*words, "rank"])
    return f"{what[0].upper()}{what[1:]} {rank} of {estimate.num_parameters:,} parameters"


def _sign_title(estimate: RankEstimate, values: Tensor) -> str:
    positive = int((values > estimate.tolerance).sum())
    negative = int((values < -estimate.tolerance).sum())
    return f"{positive:,} positive, {negative:,} negative eigenvalues"


def _horizon(estimate: RankEstimate, bound: RankBound | None) -> float:
    """Where the axis of counts ends: all of them, or little beyond the rank where that is small."""
    p = estimate.num_parameters
    needed = [estimate.interval[1], *estimate.counts.values(), 5]
    if bound is not None:
        needed.append(bound.total)
    end = 1.35 * max(needed)
    return p * 1.02 if end > 0.7 * p else end


def _draw_signs(axes: Axes, values: Tensor, tolerance: float) -> None:
    """Draw two mirrored histograms over ``|λ|``, pale where it is below the tolerance."""
    size = values.abs()
    largest = float(size.max())
    exponent = size.clamp_min(max(largest * _FLOOR, 1e-300)).log10().numpy()
    cut = math.log10(tolerance) if tolerance > 0 else float(exponent.min())
    low, high = min(float(exponent.min()), cut - 0.5), math.log10(largest)
    # Bins that begin at the tolerance: none straddles it.
    width = max(0.25, (high - low) / 40)
    below, above = math.ceil((cut - low) / width + 1e-9), math.ceil((high - cut) / width + 1e-9)
    edges = cut + width * np.arange(-below, above + 1)
    left, right = 10 ** edges[:-1], 10 ** edges[1:]
    top = 0.0
    for sign, colour, name in ((1, style.RANK, "positive"), (-1, style.NEGATIVE, "negative")):
        chosen = (values.sign() == sign).numpy()  # exact zeros have no sign, and no place here
        counts = np.histogram(exponent[chosen], edges)[0]
        top = max(top, float(counts.max()))
        for part, alpha, label in ((slice(below, None), 1.0, name), (slice(below), 0.35, None)):
            axes.bar(
                left[part],
                sign * counts[part],
                (right - left)[part],
                align="edge",
                color=colour,
                alpha=alpha,
                label=label,
                lw=0,
            )
    axes.set_xscale("log")
    if top > 20:
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(-2.5 * top, 2.5 * top)
    else:
        axes.locator_params(axis="y", integer=True)
    axes.set_xlim(left[0], right[-1])


def _count_axis(axes: Axes, limit: float, *, wide: bool) -> None:
    """Scale the axis of counts: logarithmic where the bound is far beyond the rank."""
    axes.set_xlabel("number of eigenvalues")
    if wide:
        axes.set(xscale="log", xlim=(0.8, limit))
    else:
        axes.set_xlim(0, limit)
        axes.locator_params(axis="x", nbins=6, integer=True)
    axes.xaxis.set_major_formatter(lambda x, _: style.magnitude(x))


def _draw_curve(axes: Axes, values: Tensor, rtol: float, limit: float) -> float:
    """Draw ``|λ|`` descending, relative to the largest; return where the axis ends below."""
    size = values.abs().sort(descending=True).values
    size = size[: math.ceil(limit)] / size[0]
    rank = int((size > rtol).sum())
    bottom = max(min(float(size[size > 0].min()), rtol or 1.0), _FLOOR) / 10
    points = np.arange(len(size))
    if len(size) > _MAX_POINTS:
        points = curve_points(len(size), rank, even=_MAX_POINTS, first=_MAX_POINTS // 5)
    count, sizes = points + 1, size.clamp_min(bottom).numpy()[points]
    looks = {"marker": "o", "ms": 4, "lw": 1} if len(count) <= 40 else {"lw": 2.2}
    axes.plot(count, sizes, color=style.TOLERANCE, **looks)
    above = count <= rank
    axes.plot(count[above], sizes[above], color=style.RANK, **looks)
    return bottom


def _draw_counts(axes: Axes, estimate: RankEstimate) -> float:
    """Draw the counts taken at several tolerances; return where the axis ends below."""
    counts = {**estimate.counts, estimate.rtol: estimate.rank}
    tolerances = sorted((t for t in counts if t > 0), reverse=True)
    ranks = [counts[t] for t in tolerances]
    axes.plot(ranks, tolerances, color=style.RANK, marker="o", ms=4, lw=1)
    return max(min(tolerances, default=1.0), _FLOOR) / 10
