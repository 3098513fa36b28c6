"""The page to hand on: the charts of the tab in one file that opens without anything installed."""

from __future__ import annotations

import base64
import gzip
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_hessrank.dashboard.tab.assets import SCRIPTS, STYLE, plotly_script, static
from lightning_hessrank.dashboard.tab.provider import Reader
from lightning_hessrank.dashboard.tab.records import Json, dumps, versions

#: Spectra and layers of so many measurements are kept in one page, shared among its runs.
_DETAILS = 240

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="generator" content="lightning-hessrank {version}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main id="hessian"></main>
<script id="data" type="application/octet-stream">{data}</script>
{plotly}
<script>{scripts}</script>
<script>hessrank.showPage(document.getElementById("hessian"), document.getElementById("data"))\
</script>
</body>
</html>
"""


def report_of(
    reader: Reader, *, title: str = "Rank of the loss Hessian", plotly: str | None = None
) -> str:
    """Write the page of all runs that a reader has."""
    return report(reader.runs_with_details(), title=title, plotly=plotly)


def report(
    runs: Sequence[Mapping[str, Any]],
    *,
    title: str = "Rank of the loss Hessian",
    plotly: str | None = None,
) -> str:
    """Write a self-contained HTML page.

    Args:
        runs: as :func:`~lightning_hessrank.dashboard.tab.series.run_of` puts them together, with
            their ``"details"``. Of long runs the spectra are thinned out, evenly; the numbers of
            every measurement stay.
        title: of the page.
        plotly: address to load the drawing library from instead of keeping it in the page, which
            saves 5 MB; ``None``: keep it.
    """
    kept = _DETAILS // max(1, len(runs))
    data = {"runs": [_thinned(run, max(2, kept)) for run in runs], "others": [], "broken": []}
    packed = gzip.compress(dumps(data).encode(), mtime=0)
    return _PAGE.format(
        version=versions().get("lightning-hessrank", ""),
        title=html.escape(title),
        style=static(STYLE),
        data=base64.b64encode(packed).decode(),
        plotly=_plotly(plotly),
        scripts=_inline("\n".join(map(static, SCRIPTS))),
    )


def _thinned(run: Mapping[str, Any], most: int) -> Json:
    """Keep the first, the last and evenly spread ones of the details."""
    details: Iterable[Json] = run.get("details", [])
    details = list(details)
    if len(details) > most:
        last = len(details) - 1
        chosen = sorted({round(i * last / (most - 1)) for i in range(most)})
        details = [details[i] for i in chosen]
    return {**run, "details": details}


def _plotly(address: str | None) -> str:
    if address is None:
        return f"<script>{_inline(plotly_script())}</script>"
    return f'<script src="{html.escape(address, quote=True)}"></script>'


def _inline(script: str) -> str:
    """Make a script safe inside of a page, which ends it at the first ``</script``."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
