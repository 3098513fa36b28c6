"""What the scripts of this folder share: data, networks, exact measurements, tables and pictures.

Every rank is exact, taken at fixed random weights in float64: by all eigenvalues of the Hessian, or
by a sketch where a bound that is a theorem is far below the number of parameters. Nothing here
asks how fast the machine is, so a script finds the same numbers on a busy one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_hessrank import RankBound, RankEstimate, hessian_rank, rank_bound
from lightning_hessrank.dashboard.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES = Path(__file__).parents[1] / "images"
#: Below this gap at the cut a count would be a matter of taste; the tests insist on it.
CLEAR_GAP = 1e3


# ---------------------------------------------------------------- what is measured


def log_cosh(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``log cosh(f - y)``, the third loss of the papers."""
    return (outputs - targets).cosh().log().mean()


class Loss(NamedTuple):
    """A loss, and what a bound has to know of it."""

    function: Callable[[Tensor, Tensor], Tensor]
    kind: str


#: A loss of one's own that may use every output counts like "l1_loss" for the bound.
LOSSES = {
    "MSE": Loss(F.mse_loss, "mse"),
    "cross-entropy": Loss(F.cross_entropy, "cross_entropy"),
    "cosh": Loss(log_cosh, "l1_loss"),
}


@dataclass(frozen=True, eq=False)
class Setting:
    """One network, its loss and its data: what a rank is measured of."""

    name: float | str
    """The value that is varied: what the horizontal axis or the first column shows."""
    model: nn.Module
    loss: str
    """Key of :data:`LOSSES`."""
    inputs: Tensor
    targets: Tensor


def digits(count: int, loss: str = "cross-entropy") -> tuple[Tensor, Tensor]:
    """The first ``count`` images of scikit-learn's handwritten digits, with targets for the loss.

    Each pixel is divided by its root mean square; those that are always 0 stay so. That changes the
    rank of the data by nothing, but without it what rarely used pixels add to the Hessian is so
    small that machine precision cuts some of it off.

    Returns:
        Images ``(count, 1, 8, 8)``; class numbers ``(count,)``, or ``(count, 10)`` with a 1 at the
        class where the loss compares numbers.
    """
    data = load_digits()
    images = torch.tensor(data.images[:count]).unsqueeze(1)
    scale = images.square().mean(0).sqrt()
    images = images / scale.where(scale > 0, 1.0)
    labels = torch.tensor(data.target[:count])
    return images, labels if loss == "cross-entropy" else F.one_hot(labels, 10).double()


def gaussian(count: int, shape: Sequence[int], outputs: int) -> tuple[Tensor, Tensor]:
    """Inputs ``(count, *shape)`` and targets ``(count, outputs)`` without any structure."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(count, outputs, generator=generator, dtype=torch.float64)


def drawn(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a network in float64 with Glorot's weights, as the papers do, and biases that count."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().double()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter)
            else:
                nn.init.normal_(parameter, std=0.5)
    return model


def family(
    values: Iterable[Any],
    network: Callable[[Any], nn.Module],
    loss: str,
    data: tuple[Tensor, Tensor],
) -> list[Setting]:
    """The same data and loss for ``network(value)`` with each of the values."""
    return [Setting(value, drawn(partial(network, value)), loss, *data) for value in values]


def chain(
    widths: Sequence[int], *, bias: bool = False, activation: type[nn.Module] = nn.Identity
) -> nn.Sequential:
    """Fully connected network: ``chain([64, 20, 10])`` has one hidden layer."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


# ---------------------------------------------------------------- how


@dataclass(frozen=True, eq=False)
class Case:
    """Exact ranks of one setting beside its bound."""

    name: float | str
    estimate: RankEstimate
    bound: RankBound
    """Of the linear surrogate: a theorem where the network is linear."""
    outer: int | None = None
    functional: int | None = None
    gap: float = float("inf")
    """The smallest gap at a cut among the three ranks."""

    @property
    def rank(self) -> int:
        """Of the whole Hessian, at machine precision."""
        return int(self.estimate.rank)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters ``p``."""
        return self.estimate.num_parameters


def measure(
    setting: Setting, *, parts: bool = True, method: Literal["dense", "sketch"] = "dense"
) -> Case:
    """Measure the rank, and those of the two parts if wanted, and bound them.

    Args:
        setting: what to measure.
        parts: also the outer-product and the functional Hessian.
        method: ``"sketch"`` only for linear networks, whose bound is a theorem.
    """
    loss, data = LOSSES[setting.loss], (setting.inputs, setting.targets)
    bound = rank_bound(setting.model, setting.inputs[:1], loss=loss.kind, data=setting.inputs)

    def rank_of(part: Literal["total", "outer", "functional"], most: int | None) -> RankEstimate:
        most = most if method == "sketch" else None
        return hessian_rank(
            setting.model, loss.function, data, part=part, method=method, max_rank=most
        )

    total = rank_of("total", bound.total)
    if not parts:
        return Case(setting.name, total, bound, gap=_gap(total))
    outer, functional = rank_of("outer", bound.outer), rank_of("functional", bound.functional)
    gap = min(map(_gap, (total, outer, functional)))
    return Case(setting.name, total, bound, int(outer.rank), int(functional.rank), gap)


def _gap(estimate: RankEstimate) -> float:
    return float("inf") if estimate.gap is None else estimate.gap


# ---------------------------------------------------------------- tables


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns, the first to the left."""
    lines = [list(map(str, header)), *([_cell(x) for x in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *others = (
            f"{text:<{width}}" if i == 0 else f"{text:>{width}}"
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}" if value.is_integer() else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def print_cases(title: str, name: str, cases: Sequence[Case]) -> None:
    """Print exact ranks beside bounds, and how clear-cut the least clear of them is."""
    print(f"\n{title}")
    header = (name, "p", "outer", "functional", "rank", "bound", "kind")
    rows = [
        (c.name, c.parameters, c.outer, c.functional, c.rank, c.bound.total, c.bound.kind)
        for c in cases
    ]
    if cases[0].outer is None:
        header, rows = (*header[:2], *header[4:]), [(*row[:2], *row[4:]) for row in rows]
    print_table(header, rows)
    print(f"smallest gap at a cut: {min(c.gap for c in cases):.0e}")


# ---------------------------------------------------------------- pictures


def sheet(title: str, subtitle: str, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with a heading and panels side by side, to be drawn in ``style.styled()``."""
    from matplotlib.figure import Figure

    width, height = (4.2, 3.1) if panels == 1 else (3.7 * panels, 3.2)
    figure = Figure(figsize=(width, height))
    figure.text(0.08 / width, 1 - 0.05 / height, title, va="top", fontsize=10, fontweight="bold")
    figure.text(0.08 / width, 1 - 0.26 / height, subtitle, va="top", fontsize=8, color=style.TEXT)
    grid = figure.add_gridspec(
        1,
        panels,
        left=0.62 / width,
        right=1 - 0.12 / width,
        bottom=0.46 / height,
        top=1 - 0.94 / height,
        wspace=0.26,
    )
    return figure, [figure.add_subplot(grid[0, i]) for i in range(panels)]


def legend(figure: Figure, axes: Axes) -> None:
    """Put one legend in a row between heading and panels, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    place = (0.03 / figure.get_figwidth(), 1 - 0.42 / figure.get_figheight())
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=place, ncols=len(labels))


#: part of the Hessian -> colour, marker.
LOOKS = {
    "rank": (style.RANK, "o"),
    "outer": (style.OUTER, "s"),
    "functional": (style.NEGATIVE, "^"),
}


def draw_cases(axes: Axes, cases: Sequence[Case], label: str, title: str = "") -> None:
    """Draw exact ranks as marks and bounds as lines, against what was varied."""
    names = [c.name for c in cases if not isinstance(c.name, str)]
    places = names or list(range(len(cases)))

    def line(values: Sequence[int], **looks: Any) -> None:
        if names:
            axes.plot(places, values, **looks)
        else:  # nothing lies between words
            axes.hlines(values, [x - 0.3 for x in places], [x + 0.3 for x in places], **looks)

    for part, (colour, marker) in LOOKS.items():
        bounds = [getattr(c.bound, "total" if part == "rank" else part) for c in cases]
        line(bounds, color=colour, lw=1.2, alpha=0.6)
        ranks = [getattr(c, part) for c in cases]
        axes.plot(places, ranks, marker, color=colour, ms=4.5, label=part)
    parameters = [c.parameters for c in cases]
    line(parameters, color=style.TOLERANCE, ls=":", lw=1.3, label="parameters p")
    axes.plot([], [], color=style.TOLERANCE, lw=1.2, alpha=0.6, label="lines: bounds")
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=8.5, loc="left", color=style.TEXT)
    highest, top = max(c.bound.total for c in cases), 1.05 * max(parameters)
    axes.set_ylim(0, min(1.4 * highest, max(1.12 * highest, top)) if names else top)
    axes.locator_params(axis="y", nbins=5)
    if names:
        axes.locator_params(axis="x", integer=True)
    else:
        axes.set_xticks(places, [str(c.name) for c in cases])
        axes.set_xlim(-0.5, len(cases) - 0.5)
    axes.yaxis.set_major_formatter(lambda y, _: style.magnitude(y))


def save(figure: Figure, path: Path) -> None:
    """Write a picture as a PNG of few colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(style.png(figure)[0])
    print(f"drawn into {path}")


class Panel(NamedTuple):
    """One table and one panel of the picture."""

    title: str
    label: str
    """What is varied: of the horizontal axis, and of the first column."""
    settings: Sequence[Setting]


def show(panels: Sequence[Panel], title: str, subtitle: str, path: Path) -> None:
    """Measure every setting, print a table for each panel and draw them side by side."""
    measured = []
    for panel in panels:
        measured.append([measure(setting) for setting in panel.settings])
        print_cases(panel.title, panel.label, measured[-1])
    with style.styled():
        figure, axes = sheet(title, subtitle, len(panels))
        for ax, panel, cases in zip(axes, panels, measured, strict=True):
            draw_cases(ax, cases, panel.label, panel.title)
        axes[0].set_ylabel("exact rank")
        legend(figure, axes[0])
    save(figure, path)


def picture_path(argv: Sequence[str] | None, script: str, doc: str | None) -> Path:
    """Read the one option of every script, the folder of its picture, which is named like it."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--output", type=Path, default=IMAGES, metavar="DIR", help="folder of the picture"
    )
    folder: Path = parser.parse_args(argv).output
    return folder / f"{Path(script).stem}.png"
