"""Arguments and options that several commands have, declared once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lightning_hessrank.cli.parameters import parse_spec
from lightning_hessrank.cli.spec import Spec

Model = Annotated[
    Spec,
    typer.Argument(
        parser=parse_spec,
        metavar="MODEL",
        show_default=False,
        help="What builds the network: package.module:Net, path/to/file.py:Net, or, in quotes, "
        "with arguments: 'torchvision.models:resnet18(num_classes=10)'. A class, a function that "
        "returns a module, or a module.",
    ),
]

Loss = Annotated[
    str,
    typer.Option(
        "--loss", metavar="LOSS", help="mse, cross_entropy, or package.module:name of a loss."
    ),
]


def named_option(name: str, metavar: str, purpose: str) -> Any:
    """Make an option that names an object as MODEL does; commands differ in its purpose."""
    return typer.Option(name, parser=parse_spec, metavar=metavar, show_default=False, help=purpose)


def input_option(purpose: str, metavar: str = "SHAPE") -> Any:
    """Make the option ``--input``, the size of what a network takes."""
    return typer.Option("--input", "-i", metavar=metavar, show_default=False, help=purpose)


def output_option(purpose: str, *, show_default: bool = True) -> Any:
    """Make the option ``--output``, a folder."""
    return typer.Option(
        "--output", "-o", metavar="DIR", file_okay=False, show_default=show_default, help=purpose
    )
