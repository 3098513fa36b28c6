"""``hessrank report``: the runs of a log directory as one page to hand on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR...",
            exists=True,
            file_okay=False,
            help="Folders with event files, of one run or of many.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", dir_okay=False, help="Where to write the page.")
    ] = Path("report.html"),
    plotly: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Load the drawing library from there, when the page is opened, instead of "
            "keeping it in the page (5 MB).",
            show_default=False,
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Rank of the loss Hessian",
) -> None:
    """Write the charts of runs into one HTML page that opens without anything installed.

    It reads the event files that TensorBoard reads, also while training goes on.
    """
    from lightning_hessrank.cli.parameters import fail
    from lightning_hessrank.dashboard.tab.page import report as page_of
    from lightning_hessrank.dashboard.tab.provider import runs_of_folders

    runs, broken = runs_of_folders(folders)
    for run in broken:
        typer.echo(f"left out: {run['run']}: {run['reason']}", err=True)
    if not runs:
        fail(
            f"no run with HessianRankMonitor in {', '.join(map(str, folders))}; pass the folder "
            "that tensorboard --logdir takes, or one below it"
        )
    try:
        output.write_text(page_of(runs, title=title, plotly=plotly), encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror or error}")
    measurements = sum(len(run["records"]) for run in runs)
    typer.echo(
        f"{output}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {measurements} measurements"
    )
