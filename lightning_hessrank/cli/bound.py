"""``hessrank bound``: the table for an architecture."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from lightning_hessrank.api import rank_bound
from lightning_hessrank.cli.data import reference_batches
from lightning_hessrank.cli.options import Loss, Model, input_option, named_option
from lightning_hessrank.cli.parameters import (
    Format,
    build_module,
    fail,
    find_loss,
    parse_input,
    told,
    without_forward,
)
from lightning_hessrank.cli.spec import Spec
from lightning_hessrank.dashboard.text import bound_table
from lightning_hessrank.network.batches import list_tensors
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
        list[str] | None,
        input_option(
            "Shape of one sample, without the batch dimension: 3,32,32; of tokens with their "
            "type, 16:int64. Once for each input. Default: that of DATA.",
        ),
    ] = None,
    data: Annotated[
        Spec | None,
        named_option(
            "--data",
            "DATA",
            "Data that the bound holds for, named as for `hessrank measure`. Default: any.",
        ),
    ] = None,
    max_samples: Annotated[
        int, typer.Option(min=1, help="Use at most so many samples of DATA.")
    ] = 512,
    loss: Loss = "mse",
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
    linear networks, a reference line for others. The last line says which, and why. Nothing is
    trained. Without --data it holds for any data, and so lies above what `hessrank measure` shows
    beside a rank on few samples; with the same --data it is the same.

    For example,

    hessrank bound 'torch.nn:Linear(10, 3)' --input 10

    hessrank bound my_package.models:Net --input 3,32,32 --loss cross_entropy

    hessrank bound 'train.py:Net(width=32)' --data train.py:LitData --format markdown
    """
    known_loss = find_loss(loss)
    module = build_module(model).eval()
    batches = [] if data is None else _inputs_of(data, max_samples)
    example = _example(inputs or (), batches)
    try:
        found = rank_bound(
            module,
            example,
            loss=known_loss,
            data=batches or None,
            input_rank=input_rank,
            kind=kind.value,
        )
    except BoundNotAvailableError as error:
        fail(f"there is no bound for this network: {error}")
    except Exception as error:  # the user's own forward may raise anything
        if hint := without_forward(error, model):
            fail(hint)
        given = ", ".join(str(tuple(x.shape)) for x in list_tensors(example))
        fail(f"{type(module).__name__} with an input of shape {given}: {told(error)}")
    typer.echo(render(found, output))


def _inputs_of(data: Spec, max_samples: int) -> list[Any]:
    """Inputs of the batches that a measurement on these data takes."""
    batches = reference_batches(data, max_samples, seed=0)
    return [x[0] if isinstance(x, (tuple, list)) and len(x) == 2 else x for x in batches]


def _example(inputs: Sequence[str], batches: Sequence[Any]) -> Any:
    """One batch as the network takes it, of the shapes given or the first of the data."""
    if inputs:
        example = tuple(map(parse_input, inputs))
        return example if len(example) > 1 else example[0]
    if not batches:
        raise typer.BadParameter(
            "say what the network takes: the shape of one sample, as 3,32,32, or --data",
            param_hint="'--input'",
        )
    return batches[0]


def render(found: RankBound, output: Format) -> str:
    """Lay out a bound as text, JSON or Markdown."""
    if output is Format.json:
        return json.dumps(found.to_dict(), indent=2)
    return str(found) if output is Format.text else bound_table(found)
