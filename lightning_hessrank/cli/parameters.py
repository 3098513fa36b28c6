"""What the commands share: parameter types, and how errors leave the program."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from torch import nn

from lightning_hessrank.cli.spec import Spec, SpecError
from lightning_hessrank.estimators import method_names
from lightning_hessrank.network import losses


class Format(str, enum.Enum):
    """How a table is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"


def parse_spec(text: str) -> Spec:
    """Import what is named on the command line.

    Raises:
        BadParameter: it leads nowhere.
    """
    try:
        return Spec.parse(text)
    except SpecError as error:
        raise typer.BadParameter(str(error)) from error


def parse_method(text: str) -> str:
    """Read the name of a method.

    Raises:
        BadParameter: nobody knows it.
    """
    if text not in method_names():
        listed = ", ".join(map(repr, method_names()))
        raise typer.BadParameter(f"{text!r} is not one of {listed}")
    return text


def parse_shape(text: str) -> tuple[int, ...]:
    """Read a shape such as ``3,32,32`` (or ``3x32x32``).

    Raises:
        BadParameter: it is none.
    """
    pieces = [piece.strip() for piece in text.replace("x", ",").split(",")]
    if not all(piece.isdecimal() and int(piece) > 0 for piece in pieces):
        raise typer.BadParameter(
            f"{text!r} is not a shape; write positive whole numbers with commas, as 3,32,32",
            param_hint="'--input'",
        )
    return tuple(map(int, pieces))


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


def build_module(spec: Spec, hint: str = "'MODEL'", **defaults: Any) -> nn.Module:
    """Build the module that an argument names.

    Raises:
        BadParameter: it cannot be built so, or is no module.
    """
    try:
        return spec.build_module(**defaults)
    except SpecError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from error
    except Exception as error:
        raise typer.BadParameter(
            f"building {spec.text!r} failed: {type(error).__name__}: {error}", param_hint=hint
        ) from error


def find_loss(text: str) -> str | Callable[..., Any]:
    """Return the name of a known loss, or the loss that ``text`` names.

    Raises:
        BadParameter: it is neither.
    """
    if losses.find_loss(text) is not None:
        return text
    if ":" not in text:
        raise typer.BadParameter(
            f"{text!r} is not a known loss; write package.module:name, or one of "
            f"{', '.join(losses.names())}",
            param_hint="'--loss'",
        )
    try:
        spec = Spec.parse(text)
        loss = spec.build() if isinstance(spec.target, type) or spec.args else spec.target
    except SpecError as error:
        raise typer.BadParameter(str(error), param_hint="'--loss'") from error
    if not callable(loss):
        raise typer.BadParameter(f"{text!r} cannot be called", param_hint="'--loss'")
    return loss


def fail(message: str) -> NoReturn:
    """Leave with exit code 1: the arguments were understood, but it cannot be done."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)
