"""``hessrank bound``: the table for an architecture."""

from __future__ import annotations

import enum
import json
from typing import Annotated

import torch
import typer

from lightning_hessrank.api import rank_bound
from lightning_hessrank.cli.parameters import (
    Format,
    Model,
    build_module,
    fail,
    find_loss,
    parse_shape,
)
from lightning_hessrank.dashboard.text import bound_table
from lightning_hessrank.results import BoundNotAvailableError, RankBound


class Kind(str, enum.Enum):
    """Kinds of linear bound; see :func:`lightning_hessrank.rank_bound`."""

    auto = "auto"
    closed_form = "closed-form"
    generic = "generic"
    patch = "patch"


def bound(
    model: Model,
    *,
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            "-i",
            metavar="SHAPE",
            show_default=False,
            help="Shape of one sample, without the batch dimension: 3,32,32. Once for each input.",
        ),
    ],
    loss: Annotated[
        str,
        typer.Option(metavar="LOSS", help="mse, cross_entropy, or package.module:name of a loss."),
    ] = "mse",
    input_rank: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="R",
            show_default=False,
            help="Rank of the (uncentred) input covariance, where it is known. Default: any data.",
        ),
    ] = None,
    kind: Annotated[
        Kind, typer.Option(help="Which bound; auto takes the smallest valid one.")
    ] = Kind.auto,
    output: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.text,
) -> None:
    """Print the bound on the Hessian's rank that an architecture implies.

    It is the bound of the linear surrogate, the network without its activations: a theorem for
    linear networks, a reference line for others. The last line says which, and why. No data are
    needed and nothing is trained.

    For example,

    hessrank bound 'torch.nn:Linear(10, 3)' --input 10

    hessrank bound my_package.models:Net --input 3,32,32 --loss cross_entropy

    hessrank bound 'train.py:Net(width=32)' --input 784 --format markdown
    """
    shapes = [(1, *parse_shape(text)) for text in inputs]
    known_loss = find_loss(loss)
    module = build_module(model).eval()
    example = tuple(map(torch.zeros, shapes))
    try:
        found = rank_bound(
            module,
            example if len(example) > 1 else example[0],
            loss=known_loss,
            input_rank=input_rank,
            kind=kind.value,
        )
    except BoundNotAvailableError as error:
        fail(f"there is no bound for this network: {error}")
    except NotImplementedError:
        fail(
            f"{type(module).__name__} has no forward(); name the network inside it, as "
            f"'{model.text}().net'"
        )
    except (RuntimeError, TypeError, ValueError) as error:
        given = ", ".join(map(str, shapes))
        fail(f"{type(module).__name__} with an input of shape {given}: {error}")
    typer.echo(render(found, output))


def render(found: RankBound, output: Format) -> str:
    """Lay out a bound as text, JSON or Markdown."""
    if output is Format.json:
        return json.dumps(found.to_dict(), indent=2)
    return str(found) if output is Format.text else bound_table(found)
