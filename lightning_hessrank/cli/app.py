"""The program ``hessrank``.

Commands are imported when they are asked for: ``--version`` and a mistyped command answer at once,
without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperGroup

from lightning_hessrank import __version__

#: What every ``typer.Typer`` here is made with.
_PLAIN: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,  # plain text, that can be read in a log and pasted elsewhere
    "pretty_exceptions_enable": False,
}

#: What ends the program otherwise: not least the parser's own errors, which it prints itself. Their
#: base is click's, or Typer's copy of it.
_NOT_OURS: tuple[type[Exception], ...] = (
    *(typer.Exit, typer.Abort, BrokenPipeError),
    *(x for x in typer.BadParameter.__mro__ if x.__name__ == "ClickException"),
)


class Commands(TyperGroup):
    """The commands, each in a module of its own name, imported on use."""

    SUMMARIES: ClassVar[dict[str, str]] = {
        "bound": "The bound on the rank that an architecture implies.",
        "measure": "The rank at every checkpoint of a run.",
        "report": "Runs as one HTML page to hand on.",
        "sweep": "Rank, bound and √p over a family of networks.",
        "toeplitz": "The Toeplitz matrix of a layer.",
    }

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands."""
        return list(self.SUMMARIES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command; ``None`` where there is none of this name."""
        if cmd_name not in self.SUMMARIES:
            return None
        module = importlib.import_module(f"lightning_hessrank.cli.{cmd_name}")
        single = typer.Typer(**_PLAIN)
        single.command(cmd_name, short_help=self.SUMMARIES[cmd_name])(getattr(module, cmd_name))
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.SUMMARIES.items()))

    def invoke(self, ctx: Any) -> Any:
        """Run a command; whatever escapes it is one line too, never a traceback."""
        try:
            return super().invoke(ctx)
        except _NOT_OURS:
            raise
        except Exception as error:
            from lightning_hessrank.cli.parameters import fail, told

            fail(told(error))


app = typer.Typer(
    name="hessrank",
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    **_PLAIN,
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
