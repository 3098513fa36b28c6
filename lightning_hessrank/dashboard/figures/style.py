"""One look for all figures: legible on a TensorBoard card, safe for colour-blind readers.

Figures are plain ``matplotlib.figure.Figure`` objects, unknown to pyplot, which would keep every
one of them alive. The background is opaque, so that they can be read on a dark page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

#: Inches and dots per inch: 672 × 320 pixels, the shape of the inside of TensorBoard's cards, so
#: that a figure fills its card and its text is as large as it can be.
SIZE = (4.2, 2.0)
DPI = 160

# Okabe and Ito's palette, which readers with any common colour blindness can tell apart. Each
# meaning has one colour in every figure, and a line style of its own besides.
RANK = "#0072B2"
BOUND = "#D55E00"
TOLERANCE = "#6B6B6B"
NEGATIVE = "#CC79A7"
OUTER = "#009E73"
TEXT = "#4D4D4D"
FAINT = "#D9D9D9"
TRACK = "#F3D9C9"
"""A pale tint of the bound's colour: the room that the rank has."""

_STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": "#4D4D4D",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "legend.handlelength": 1.8,
    "legend.borderpad": 0.2,
    "lines.linewidth": 1.8,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def styled() -> Any:
    """Context in which to draw: matplotlib's defaults and this style, whatever the user has set."""
    import matplotlib.style

    return matplotlib.style.context(["default", _STYLE])


def card(
    title: str,
    subtitle: str,
    *,
    height: float = SIZE[1],
    left: float = 0.56,
    right: float = 0.18,
    legend: bool = True,
) -> tuple[Figure, Axes]:
    """Return a figure with a heading, a line that says what was measured and how, and axes.

    Margins are fixed, in inches, so that all cards have one look and none is laid out twice.
    """
    from matplotlib.figure import Figure

    width, below, above = SIZE[0], 0.4, 0.62 if legend else 0.48
    figure = Figure(figsize=(width, height))
    figure.text(0.02, 1 - 0.05 / height, title, va="top", fontsize=10, fontweight="bold")
    figure.text(0.02, 1 - 0.23 / height, subtitle, va="top", fontsize=8, color=TEXT)
    box = (left / width, below / height, 1 - (left + right) / width, 1 - (below + above) / height)
    return figure, figure.add_axes(box)


def beside(figure: Figure, axes: Axes, *, gap: float, right: float = 0.12) -> Axes:
    """Return further axes to the right of these, as high as they are.

    Args:
        figure: of both.
        axes: that leave room at their right.
        gap: inches between them, for labels.
        right: inches at the edge.
    """
    box = axes.get_position()
    left = box.x1 + gap / SIZE[0]
    return figure.add_axes((left, box.y0, 1 - right / SIZE[0] - left, box.height))


def name_end(axes: Axes, x: float, y: float, text: str, colour: str, *, lift: float = 0.0) -> None:
    """Write a value at the end of its line.

    Args:
        axes: whose right edge has room for it.
        x: of the end, in data.
        y: of the end, in data.
        text: the value.
        colour: of the line.
        lift: points by which the text is moved up, away from another one.
    """
    axes.annotate(
        text,
        (x, y),
        xytext=(5, lift),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=colour,
        annotation_clip=False,
    )


def key(figure: Figure, *axes: Axes) -> None:
    """Put one legend, in one row, between heading and axes, where it covers nothing."""
    anchor = (0.005, 1 - 0.35 / figure.get_figheight())
    found = [each.get_legend_handles_labels() for each in axes]
    handles = [handle for pair in found for handle in pair[0]]
    labels = [label for pair in found for label in pair[1]]
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=anchor, ncols=len(labels) or 1)


def draw_tolerance(axes: Axes, tolerance: float, *, along: str) -> None:
    """Mark the cut-off by a named line, and what is below it by a shade.

    Args:
        axes: with its limits set.
        tolerance: in units of the axis.
        along: ``"x"`` where the eigenvalues are on the horizontal axis, else ``"y"``.
    """
    if along == "y":
        bottom, _ = axes.get_ylim()
        axes.axhspan(bottom, tolerance, color=FAINT, alpha=0.45, lw=0, zorder=0)
        axes.axhline(tolerance, color=TOLERANCE, ls=":", lw=1.3, label="tolerance")
        axes.set_ylim(bottom=bottom)
    else:
        left, _ = axes.get_xlim()
        axes.axvspan(left, tolerance, color=FAINT, alpha=0.45, lw=0, zorder=0)
        axes.axvline(tolerance, color=TOLERANCE, ls=":", lw=1.3, label="tolerance")
        axes.set_xlim(left=left)


def message(axes: Axes, text: str) -> None:
    """Say in the middle of empty axes why they are empty."""
    axes.set_axis_off()
    axes.figure.text(0.5, 0.45, text, ha="center", va="center", color=TEXT)


def render(figure: Figure) -> Image.Image:
    """Draw a figure as an opaque RGB image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    with styled():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    size = canvas.get_width_height()
    return Image.frombuffer("RGBA", size, canvas.buffer_rgba()).convert("RGB")


def png(figure: Figure) -> tuple[bytes, int, int]:
    """Encode a figure with a palette, a third of the size of full colours.

    Returns:
        The PNG file, its width and height in pixels.
    """
    from PIL import Image

    image = render(figure)
    if any(axes.images for axes in figure.axes):  # a heat map has colours of its own
        coded = image.quantize(96, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    else:
        coded = image.quantize(palette=_palette(), dither=Image.Dither.NONE)
    file = io.BytesIO()
    coded.save(file, "PNG", optimize=True)
    return file.getvalue(), *image.size


@cache
def _palette() -> Image.Image:
    """Every colour of this module in its shades: no adaptive palette keeps a single thin line."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    shades = [(colour, a) for colour in (RANK, BOUND, NEGATIVE, OUTER) for a in (1, 0.6, 0.35, 0.2)]
    shades += [(colour, 1) for colour in (TRACK, FAINT)] + [("black", a / 7) for a in range(8)]
    shades += [(FAINT, 0.45), (TOLERANCE, 1)]
    shades += [(colour, a) for colour in ("#084a80", "#a63603") for a in (1, 0.8, 0.6, 0.45, 0.3)]
    table = [round(255 * (a * c + 1 - a)) for colour, a in shades for c in to_rgb(colour)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(table)
    return palette


def number(value: float) -> str:
    """``1210`` -> ``"1,210"``; a small fraction keeps one digit; ``nan`` says so."""
    if math.isnan(value):
        return "nan"
    whole = float(value).is_integer() or abs(value) >= 100
    return f"{value:,.0f}" if whole else f"{value:,.1f}"


def magnitude(value: float) -> str:
    """``2500000`` -> ``"2.5M"``, for axes of parameters and ranks."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def clearness(gap: float | None) -> str:
    """What a spectral gap means, in two words; empty where it is not known."""
    if gap is None or math.isnan(gap):
        return ""
    if gap == math.inf:
        return "nothing below the cut"
    return "clear cut" if gap >= 1e3 else "fairly clear" if gap >= 10 else "no clear cut"


def scientific(value: float) -> str:
    """``2.7e-13`` -> ``"2.7e-13"``, ``1.04e10`` -> ``"1e10"``, ``12`` -> ``"12"``."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def power(value: float) -> str:
    """``1e-12`` -> ``"1e-12"``, for logarithmic axes: mathematical text is slow."""
    exponent = round(math.log10(value)) if value > 0 else -math.inf
    return f"1e{exponent}" if math.isfinite(exponent) and exponent else f"{10.0**exponent:g}"


def short_names(names: Sequence[str], length: int = 18) -> list[str]:
    """Shorten layers' names to ``length`` characters, keeping what tells them apart.

    Where one is too long, the dotted parts that all begin or end with are left out, but for the
    last one in front; what is still too long is cut in the middle.
    """
    if max(map(len, names), default=0) > length and len(set(names)) > 1:
        parts = [name.split(".") for name in names]
        front = _shared(parts)
        back = _shared([p[front:][::-1] for p in parts])
        names = [".".join(p[max(front - 1, 0) : len(p) - back]) for p in parts]
    tail = (length - 1) * 2 // 3
    return [n if len(n) <= length else f"{n[: length - 1 - tail]}…{n[-tail:]}" for n in names]


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """How many leading entries all sequences have in common."""
    columns = zip(*parts, strict=False)
    return len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
