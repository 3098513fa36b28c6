"""Over training: the exact rank of a linear network stays at its bound while what is seen falls.

    python examples/paper/training.py

Networks 64-16-10 without biases learn 300 digits by full-batch gradient descent (Adam, float64).
At machine precision the linear one keeps the rank of its bound, and tanh its own, above it; ReLU
loses what its dying units take along. What falls in all three is the count at a moderate tolerance:
a few directions come to carry nearly all curvature.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from activations import ACTIVATIONS, COLOURS
from common import LOSSES, Case, Setting, chain, digits, drawn, measure, print_table
from pictures import legend, picture_path, save, sheet

from lightning_hessrank.dashboard.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = (0, 1, 3, 10, 30, 100, 300, 1000)
COARSE = 1e-3
LOSS = "MSE"


class Moment(NamedTuple):
    """What is known of a network after some steps."""

    step: int
    loss: float
    case: Case


def train(name: str, steps: Sequence[int] = STEPS) -> list[Setting]:
    """Train 64-16-10 with one activation; return copies after each of ``steps`` steps."""
    inputs, targets = digits(300, LOSS)
    model = drawn(lambda: chain([64, 16, 10], activation=ACTIVATIONS[name]))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    copies = []
    for step in range(max(steps) + 1):
        if step in steps:
            copies.append(Setting(step, copy.deepcopy(model), LOSS, inputs, targets))
        optimizer.zero_grad()
        LOSSES[LOSS].function(model(inputs), targets).backward()
        optimizer.step()
    return copies


def follow(name: str, steps: Sequence[int] = STEPS) -> list[Moment]:
    """Train and measure."""
    moments = []
    for setting in train(name, steps):
        with torch.no_grad():
            loss = LOSSES[setting.loss].function(setting.model(setting.inputs), setting.targets)
        moments.append(Moment(int(setting.name), float(loss), measure(setting)))
    return moments


def draw(axes: Sequence[Axes], runs: Mapping[str, Sequence[Moment]]) -> None:
    """Draw the rank at machine precision, the count at a coarse tolerance, and the loss."""
    places = range(len(STEPS))
    for name, moments in runs.items():
        look = {"color": COLOURS[name], "marker": "o", "ms": 4, "lw": 1.4, "label": name}
        axes[0].plot(places, [m.case.rank for m in moments], **look)
        axes[1].plot(places, [m.case.estimate.rank_at(COARSE) for m in moments], **look)
        axes[2].plot(places, [m.loss for m in moments], **look)
    bound = next(iter(runs.values()))[0].case.bound
    axes[0].axhline(bound.total, color=style.BOUND, ls="--", lw=1.3, label="linear bound")
    axes[0].axhline(
        bound.num_parameters, color=style.TOLERANCE, ls=":", lw=1.3, label="parameters p"
    )
    axes[1].axhline(bound.total, color=style.BOUND, ls="--", lw=1.3)
    axes[2].set_yscale("log")
    titles = ("rank at machine precision", f"eigenvalues beyond {COARSE:.0e}", "training loss")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=8.5, loc="left", color=style.TEXT)
        ax.set_xticks(places, [str(s) for s in STEPS])
        ax.set_xlabel("steps")
    for ax in axes[:2]:
        ax.set_ylim(0, 1.06 * bound.num_parameters)


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    runs = {name: follow(name) for name in ACTIVATIONS}
    for name, moments in runs.items():
        bound = moments[0].case.bound
        print(f"\n{name}: p = {bound.num_parameters:,}, linear bound {bound.total:,}")
        rows = [
            (
                m.step,
                f"{m.loss:.4f}",
                m.case.outer,
                m.case.functional,
                m.case.rank,
                f"{m.case.estimate.gap:.0e}",
                *(m.case.estimate.rank_at(t) for t in (1e-1, 1e-2, COARSE)),
            )
            for m in moments
        ]
        header = ("step", "loss", "outer", "functional", "rank", "gap", "1e-1", "1e-2", "1e-3")
        print_table(header, rows)
    with style.styled():
        about = "64-16-10 without biases, 300 digits, MSE, Adam on the full batch"
        figure, axes = sheet("Rank over training", about, 3)
        draw(axes, runs)
        legend(figure, axes[0])
    save(figure, path)


if __name__ == "__main__":
    main()
