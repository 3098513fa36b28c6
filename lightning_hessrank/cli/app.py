"""The program ``hessrank``."""

from __future__ import annotations

from typing import Annotated

import typer

from lightning_hessrank import __version__
from lightning_hessrank.cli.bound import bound
from lightning_hessrank.cli.measure import measure
from lightning_hessrank.cli.report import report
from lightning_hessrank.cli.sweep import sweep
from lightning_hessrank.cli.toeplitz import toeplitz

app = typer.Typer(
    name="hessrank",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text, that can be read in a log and pasted elsewhere
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hessrank {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Show the rank of the loss Hessian of a network, and what its architecture implies for it.

    Exit codes: 0 done; 1 it could not be done, or not for every checkpoint; 2 wrong arguments.
    """


app.command(short_help="The bound on the rank that an architecture implies.")(bound)
app.command(short_help="The rank at every checkpoint of a run.")(measure)
app.command(short_help="Runs as one HTML page to hand on.")(report)
app.command(short_help="Rank, bound and √p over a family of networks.")(sweep)
app.command(short_help="The Toeplitz matrix of a layer.")(toeplitz)
