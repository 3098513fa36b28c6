"""What runs in the browser: files of this package, and the drawing library that is installed."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

#: Entry of the tab, which loads the others; the report has them inside.
ENTRY = "index.js"
#: In the order in which the pages load them.
SCRIPTS = (
    *("format.js", "theme.js", "series.js", "rank.js", "spectrum.js", "layers.js", "across.js"),
    *("tables.js", "controls.js", "about.js", "view.js"),
)
STYLE = "style.css"


@cache
def static(name: str) -> str:
    """Text of one of the files of this package."""
    folder = files("lightning_hessrank.dashboard.tab") / "static"
    return (folder / name).read_text(encoding="utf-8")


@cache
def plotly_script() -> str:
    """The drawing library, from the package that is installed."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
