"""ReLU and tanh against the linear bound: it holds down to a tolerance, and no further.

    python examples/paper/activations.py

The bounds are theorems for linear networks; the papers find that they "hold in practice in more
general settings". Whether they do depends on the tolerance of the count. Left and middle: numbers
of eigenvalues beyond a tolerance, for a CNN and a fully connected network on digits. Right: CNNs of
growing width at two tolerances. Beyond 1e-3, and for CNNs beyond 1e-5, ReLU and tanh stay below the
linear bound; at machine precision both exceed it and grow like p, tanh up to p itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from common import Case, Setting, chain, digits, drawn, family, measure, print_table
from pictures import legend, picture_path, save, sheet
from torch import nn

from lightning_hessrank.dashboard.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACTIVATIONS = {"linear": nn.Identity, "ReLU": nn.ReLU, "tanh": nn.Tanh}
COLOURS = {"linear": style.RANK, "ReLU": style.OUTER, "tanh": style.NEGATIVE}
TOLERANCES = [10 ** (-x / 4) for x in range(2, 54)]
SHOWN = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10)
CHANNELS = (2, 4, 6, 8, 12, 16)


def convolutional(activation: type[nn.Module], channels: int) -> nn.Sequential:
    """Two 3×3 convolutions with pooling between them, and a head, without biases."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, bias=False),
        activation(),
        nn.AvgPool2d(2),
        nn.Conv2d(channels, channels, 3, bias=False),
        activation(),
        chain([channels, 10]),
    )


def cnns(name: str, channels: Sequence[int] = CHANNELS) -> list[Setting]:
    """CNNs of growing width with one activation."""
    network = partial(convolutional, ACTIVATIONS[name])
    return family(channels, network, "MSE", digits(300, "MSE"))


def fully_connected(name: str) -> Setting:
    """64-16-16-10 with one activation."""
    model = drawn(partial(chain, [64, 16, 16, 10], activation=ACTIVATIONS[name]))
    return Setting(name, model, "MSE", *digits(300, "MSE"))


def crossing(case: Case) -> float | None:
    """The largest tolerance of the grid at which the count exceeds the linear bound."""
    beyond = (t for t in TOLERANCES if case.estimate.rank_at(t) > case.bound.total)
    return max(beyond, default=None)


def print_curves(title: str, cases: Mapping[str, Case]) -> None:
    """Print counts at some tolerances, and where the bound ceases to hold."""
    first = next(iter(cases.values()))
    print(f"\n{title}: p = {first.parameters:,}, linear bound {first.bound.total:,}")
    rows = []
    for name, case in cases.items():
        end = crossing(case)
        counts = (case.estimate.rank_at(t) for t in SHOWN)
        rows.append((name, *counts, case.rank, "never" if end is None else f"{end:.0e}"))
    header = ("beyond", *(f"{t:.0e}" for t in SHOWN), "machine", "exceeds bound from")
    print_table(header, rows)


def draw_curves(axes: Axes, cases: Mapping[str, Case], title: str) -> None:
    """Draw counts against the tolerance."""
    for name, case in cases.items():
        counts = [case.estimate.rank_at(t) for t in TOLERANCES]
        axes.plot(TOLERANCES, counts, color=COLOURS[name], lw=1.6, label=name)
    first = next(iter(cases.values()))
    axes.axhline(first.bound.total, color=style.BOUND, ls="--", lw=1.3, label="linear bound")
    axes.axhline(first.parameters, color=style.TOLERANCE, ls=":", lw=1.3, label="parameters p")
    axes.set(xscale="log", xlabel="tolerance / max |λ|", ylim=(0, 1.06 * first.parameters))
    axes.set_xticks([10.0**-x for x in range(1, 14, 3)])
    axes.xaxis.set_major_formatter(lambda x, _: style.power(x))
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.set_title(title, fontsize=8.5, loc="left", color=style.TEXT)


def draw_growth(axes: Axes, families: Mapping[str, Sequence[Case]]) -> None:
    """Draw counts at 1e-4 (filled) and at machine precision (open) against the channels."""
    for name, cases in families.items():
        places = [float(c.name) for c in cases]
        look = {"color": COLOURS[name], "lw": 1.2, "ms": 4.5}
        axes.plot(places, [c.estimate.rank_at(1e-4) for c in cases], "o-", **look)
        axes.plot(places, [c.rank for c in cases], "o--", mfc="white", **look)
    bounds = [c.bound.total for c in families["linear"]]
    axes.plot(places, bounds, color=style.BOUND, ls="--", lw=1.3)
    axes.set(xlabel="channels", ylim=(0, None))
    title = "beyond 1e-4: filled; machine precision: open"
    axes.set_title(title, fontsize=8.5, loc="left", color=style.TEXT)


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    families = {name: [measure(x, parts=False) for x in cnns(name)] for name in ACTIVATIONS}
    widest = {name: cases[-1] for name, cases in families.items()}
    dense = {name: measure(fully_connected(name), parts=False) for name in ACTIVATIONS}
    print_curves(f"CNN, {CHANNELS[-1]} channels", widest)
    print_curves("fully connected 64-16-16-10", dense)
    print("\nCNNs, counts beyond 1e-4 and at machine precision")
    rows = [
        (
            cases[0].name,
            cases[0].parameters,
            cases[0].bound.total,
            *(c.estimate.rank_at(1e-4) for c in cases),
            *(c.rank for c in cases),
        )
        for cases in zip(*families.values(), strict=True)
    ]
    print_table(("channels", "p", "bound", *ACTIVATIONS, *ACTIVATIONS), rows)
    with style.styled():
        about = "digits, MSE, no biases, at random weights"
        figure, axes = sheet("ReLU and tanh against the linear bound", about, 3)
        draw_curves(axes[0], widest, f"CNN, {CHANNELS[-1]} channels")
        draw_curves(axes[1], dense, "fully connected 64-16-16-10")
        draw_growth(axes[2], families)
        axes[0].set_ylabel("eigenvalues beyond")
        legend(figure, axes[0])
    save(figure, path)


if __name__ == "__main__":
    main()
