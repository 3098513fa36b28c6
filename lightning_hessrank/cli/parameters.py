"""What the commands share: parameter types, and how errors leave the program."""

from __future__ import annotations

import enum
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import typer
from torch import Tensor, nn

from lightning_hessrank.cli.spec import Spec, SpecError
from lightning_hessrank.estimators import method_names
from lightning_hessrank.monitor.failures import cause_of
from lightning_hessrank.network import losses
from lightning_hessrank.tolerance import check_rtol


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


def parse_rtol(text: str | float) -> float | Literal["machine"]:
    """Read a relative tolerance, or ``machine`` for machine precision.

    Raises:
        BadParameter: it is neither.
    """
    if text == "machine":
        return "machine"
    try:
        return check_rtol(float(text))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no relative tolerance; write a number from 0 up to, not including, 1, "
            "as 1e-3, or machine"
        ) from error


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


def parse_input(text: str) -> Tensor:
    """Return one sample of zeros from its shape, and perhaps its type: ``16:int64``.

    Raises:
        BadParameter: there is no such shape or type.
    """
    shape, colon, name = text.partition(":")
    dtype = getattr(torch, name.strip(), None) if colon else torch.get_default_dtype()
    if not isinstance(dtype, torch.dtype):
        raise typer.BadParameter(
            f"{name!r} is not a dtype of torch; write, as for tokens, {shape}:int64",
            param_hint="'--input'",
        )
    return torch.zeros(1, *parse_shape(shape), dtype=dtype)


def build_module(spec: Spec, hint: str = "'MODEL'", **defaults: Any) -> nn.Module:
    """Build the module that an argument names.

    Raises:
        BadParameter: it cannot be built so, or is no module.
    """
    with user_code(f"building {spec.text!r}", hint):
        return spec.build_module(**defaults)


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
    with user_code(f"building {text!r}", "'--loss'"):
        spec = Spec.parse(text)
        loss = (
            spec.build() if isinstance(spec.target, type) or spec.args is not None else spec.target
        )
    if not callable(loss):
        raise typer.BadParameter(f"{text!r} cannot be called", param_hint="'--loss'")
    return loss


@contextmanager
def user_code(what: str, hint: str) -> Iterator[None]:
    """Turn whatever the user's own code raises into one line.

    Args:
        what: is being done.
        hint: the parameter that names the code.

    Raises:
        BadParameter: it failed.
    """
    try:
        yield
    except typer.BadParameter:
        raise
    except SpecError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from error
    except (Exception, SystemExit) as error:
        raise typer.BadParameter(f"{what} failed: {told(error)}", param_hint=hint) from error


def told(error: BaseException) -> str:
    """Say in one line what went wrong, and where in the user's own code."""
    text = cause_of(error) if isinstance(error, Exception) else f"SystemExit: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(Path(frame.filename))]
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}: " if own else ""
    return place + " ".join(text.split())


def without_forward(error: BaseException, model: Spec) -> str | None:
    """Say what to name instead of a module that torch found to have no ``forward``, if it did."""
    found = re.match(r'Module \[(\w+)\] is missing the required "forward"', str(error))
    if found is None:
        return None
    call = model.text if model.args is not None else f"{model.text}()"
    return f"{found[1]} has no forward(); name the network inside it, as '{call}.net'"


def _is_own(file: Path) -> bool:
    """Whether a source is the user's: neither installed, nor part of Python, nor ours."""
    foreign = {"site-packages", "dist-packages", "lib", Path(__file__).parents[1].name}
    return file.suffix == ".py" and not foreign & set(file.parts)


def fail(message: str) -> NoReturn:
    """Leave with exit code 1: the arguments were understood, but it cannot be done."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each warning as a line, once, without the source that warnings usually show."""
    said: set[str] = set()

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            print(f"Warning: {message}", file=sys.stderr)  # where a display's stand-in shows it

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = show  # restored with the filters
        yield
