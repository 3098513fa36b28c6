"""Pictures of the scripts in this folder, in the style of the package's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common import Case, Setting, measure, print_cases

from lightning_hessrank.dashboard.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES = Path(__file__).parents[1] / "images"


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
