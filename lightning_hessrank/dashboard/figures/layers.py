"""Figures that compare layers: rank inside its bound, now and over time; what makes up a bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_hessrank.dashboard.figures import style
from lightning_hessrank.results import LayerRank, RankBound, validity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Rows that fit on a card with a name each.
_NAMED_ROWS = 6
#: Inches at the left for layers' names.
_NAMES = 1.36
#: More columns than this are thinned out.
_MAX_COLUMNS = 120


def layers_figure(layers: Mapping[str, LayerRank]) -> Figure:
    """Draw the rank of each layer's own block inside its bound (without bounds: its size)."""
    with style.styled():
        bounded = _all_bounded([x.bound for x in layers.values()])
        within = [
            x.num_parameters if x.bound is None or not bounded else x.bound for x in layers.values()
        ]
        ranks = [x.rank for x in layers.values()]
        shares = [r / n if n else math.nan for r, n in zip(ranks, within, strict=True)]
        of = "bound" if bounded else "parameters"
        figure, axes = style.card(
            f"Rank of each layer's own block, of its {of}",
            _extremes(list(layers), shares),
            left=_NAMES,
            right=0.82 if len(layers) <= _NAMED_ROWS else 0.2,
        )
        rows = np.arange(len(layers))
        slim = 0.6 if len(layers) <= 30 else 1.0
        thickness = min(0.7, 0.2 + 0.12 * len(layers)) if slim < 1 else 1.0
        axes.barh(rows, 1, thickness, color=style.TRACK if bounded else style.FAINT, label=of)
        axes.barh(rows, shares, thickness * slim, color=style.RANK, label="rank")
        axes.axvline(1, color=style.BOUND if bounded else style.TOLERANCE, lw=1.2, ls="--")
        end = max([1.0, *(s for s in shares if math.isfinite(s))])
        axes.set(xlim=(0, 1.02 * end), xlabel=f"rank / {of}")
        if len(layers) <= _NAMED_ROWS:
            for row, (rank, limit) in enumerate(zip(ranks, within, strict=True)):
                text = f" {style.magnitude(rank)} / {style.magnitude(limit)}"
                axes.text(1.02 * end, row, text, va="center", fontsize=8)
        _name_rows(axes, list(layers))
        style.key(figure, axes)
        return figure


def layers_over_time_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw a heat map of rank over bound (or over parameters), layer by measurement.

    Args:
        history: records of the run; those without layers are left out, gaps stay white.
    """
    records = [r for r in history if r.get("layers")]
    records = [records[i] for i in _thinned(len(records))]
    names = list(dict.fromkeys(name for r in records for name in r["layers"]))
    found = [x for r in records for x in r["layers"].values()]
    bounded = _all_bounded([x["bound"] for x in found])
    of = "bound" if bounded else "num_parameters"
    share = np.full((len(names), len(records)), math.nan)
    for j, record in enumerate(records):
        for name, x in record["layers"].items():
            share[names.index(name), j] = x["rank"] / x[of] if x[of] else math.nan
    with style.styled():
        last = share[:, -1].tolist() if records else []
        figure, axes = style.card(
            f"Rank over {'bound' if bounded else 'parameters'}, layer by layer",
            _extremes(names, last),
            left=_NAMES,
            right=0.2,
            legend=False,
        )
        if not records:
            style.message(axes, "no layer was measured yet")
            return figure
        low, high = _colour_limits(share)
        image = axes.imshow(
            share, aspect="auto", interpolation="nearest", cmap="cividis", vmin=low, vmax=high
        )
        axes.set_xlabel("step")
        _name_columns(axes, [r["step"] for r in records])
        _name_rows(axes, names, inverted=False)
        bar = figure.colorbar(image, ax=axes, pad=0.03, fraction=0.08)
        bar.outline.set_visible(False)
        return figure


def bound_figure(bound: RankBound) -> Figure:
    """Draw what each layer can add to the rank, beside its number of parameters."""
    with style.styled():
        rows = np.arange(len(bound.layers))
        what = "Hessian" if bound.functional is None else "functional Hessian"
        parts = [
            f"{name} {style.magnitude(value)}"
            for name, value in (("outer-product", bound.outer), ("functional", bound.functional))
            if value is not None
        ]
        figure, axes = style.card(
            f"Bound {bound.total:,} of {bound.num_parameters:,} parameters",
            ", ".join([f"{bound.kind}, {validity(bound.is_theorem)}", *parts]),
            height=max(style.SIZE[1], 1.3 + 0.2 * len(rows)),
            left=_NAMES,
        )
        if not bound.layers:
            style.message(axes, "this bound has no split by layer")
            return figure
        size = [max(x.num_parameters, 1) for x in bound.layers]
        share = [max(x.functional, 1) for x in bound.layers]
        axes.hlines(rows, share, size, color=style.FAINT, lw=2.5, zorder=1)
        axes.plot(size, rows, "o", color=style.TOLERANCE, ms=5, mfc="white", label="parameters")
        axes.plot(share, rows, "o", color=style.BOUND, ms=5, label=f"bound, {what}")
        axes.set(xscale="log", xlim=(0.8, 1.6 * max([10, *size])), xlabel="columns of the Hessian")
        axes.xaxis.set_major_formatter(lambda x, _: style.magnitude(x))
        _name_rows(axes, [x.name for x in bound.layers], every=True)
        style.key(figure, axes)
        return figure


def _all_bounded(bounds: Sequence[int | None]) -> bool:
    return bool(bounds) and all(b is not None for b in bounds)


def _extremes(names: Sequence[str], shares: Sequence[float]) -> str:
    """Name the layers that stand out, for with many of them the rows have no names."""
    known = [(s, n) for s, n in zip(shares, names, strict=True) if math.isfinite(s)]
    if not known:
        return "no layer has a rank"
    low, high = min(known), max(known)
    if len(names) == 1 or low[0] == high[0]:
        return f"{len(names)} layer{'s' if len(names) > 1 else ''} at {low[0]:.2f}"
    short = dict(zip(names, style.short_names(names, 14), strict=True))
    least, most = short[low[1]], short[high[1]]
    return f"{len(names)} layers from {low[0]:.2f} ({least}) to {high[0]:.2f} ({most})"


def _name_rows(
    axes: Axes, names: Sequence[str], *, every: bool = False, inverted: bool = True
) -> None:
    """Label rows from top to bottom, as many as are legible."""
    stride = 1 if every else max(1, math.ceil(len(names) / (_NAMED_ROWS + 2)))
    shown = list(range(0, len(names), stride))
    labels = style.short_names(names)
    axes.set_yticks(shown, [labels[i] for i in shown], fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if inverted:
        axes.set_ylim(len(names) - 0.4, -0.6)


def _name_columns(axes: Axes, steps: Sequence[int]) -> None:
    stride = max(1, math.ceil(len(steps) / 5))
    shown = list(range(0, len(steps), stride))
    axes.set_xticks(shown, [style.magnitude(steps[i]) for i in shown])


def _thinned(count: int) -> list[int]:
    """At most ``_MAX_COLUMNS`` indices, first and last among them."""
    if count <= _MAX_COLUMNS:
        return list(range(count))
    return np.linspace(0, count - 1, _MAX_COLUMNS).round().astype(int).tolist()


def _colour_limits(share: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Round limits that stay put from measurement to measurement."""
    finite = share[np.isfinite(share)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    bottom = next(x for x in (0.9, 0.5, 0.0) if low >= x or x == 0.0)
    return bottom, max(1.0, high)
