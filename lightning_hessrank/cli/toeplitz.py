"""``hessrank toeplitz``: the matrix that a layer is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor, nn

from lightning_hessrank.cli.options import input_option
from lightning_hessrank.cli.parameters import build_module, fail, parse_shape
from lightning_hessrank.cli.spec import Spec, SpecError
from lightning_hessrank.network.toeplitz import toeplitz_figure, toeplitz_matrix, weight_pattern


def toeplitz(
    layer: Annotated[
        str,
        typer.Argument(
            metavar="LAYER",
            show_default=False,
            help="A layer of torch.nn, in quotes: 'Conv1d(1, 1, 3)'; or a network, as for "
            "`hessrank bound`, whose layer --name tells.",
        ),
    ],
    size: Annotated[
        str,
        input_option(
            "Spatial size of the layer's input, without batch and channels: 8 or 8,8.", "SIZE"
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(show_default=False, help="Which layer of the network, as 'features.0'."),
    ] = None,
    values: Annotated[
        bool,
        typer.Option("--values", help="Print the weights' values rather than their numbers."),
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Also draw it into this file (.png, .svg, .pdf)."),
    ] = None,
) -> None:
    """Print the Toeplitz matrix of a layer: T @ x.flatten() is the layer's output.

    Each entry is the number of the weight that stands there (weight.flatten()[number - 1]), a dot
    is a zero; equal numbers are the weight sharing that makes the matrix Toeplitz. Rows are
    outputs, columns inputs, both channel by channel.

    For example,

    hessrank toeplitz 'Conv1d(1, 1, 3)' --input 6

    hessrank toeplitz 'Conv2d(1, 2, 3, stride=2, padding=1)' --input 5,5 --save toeplitz.png

    hessrank toeplitz torchvision.models:resnet18 --name layer1.0.conv1 --input 8,8 --save t.png
    """
    sizes = parse_shape(size)
    module = _layer(layer, name)
    try:
        matrix = toeplitz_matrix(module, sizes)
        pattern = weight_pattern(module, sizes)
    except (TypeError, ValueError, RuntimeError) as error:
        fail(f"{type(module).__name__} with an input of size {sizes}: {error}")
    rows, columns = matrix.shape
    zeros = float((pattern == 0).double().mean())
    weights = int(pattern.unique().count_nonzero())
    typer.echo(f"{module}\n{rows} × {columns}, {zeros:.0%} zeros, {weights} distinct weights\n")
    lines = format_matrix(matrix if values else pattern, values)
    if max(map(len, lines)) <= shutil.get_terminal_size().columns:
        typer.echo("\n".join(lines))
    elif save is None:
        fail(f"{columns} columns are too wide for this terminal; pass --save toeplitz.png")
    if save is not None:
        try:
            toeplitz_figure(module, sizes).savefig(save)
        except (OSError, ValueError) as error:
            fail(f"cannot write {save}: {error}")
        typer.echo(f"\nwritten to {save}")


def format_matrix(matrix: Tensor, values: bool) -> list[str]:
    """Lay out a matrix as aligned lines, zeros as dots."""
    cells = [[_cell(x, values) for x in row] for row in matrix.tolist()]
    width = max(len(cell) for row in cells for cell in row)
    return [" ".join(f"{cell:>{width}}" for cell in row) for row in cells]


def _cell(value: float, values: bool) -> str:
    if value == 0:
        return "."
    return f"{value:.3g}" if values else f"{value:.0f}"


def _layer(text: str, name: str | None) -> nn.Module:
    try:
        spec = Spec.parse(text, default_module="torch.nn")
    except SpecError as error:
        raise typer.BadParameter(str(error), param_hint="'LAYER'") from error
    module = build_module(spec, "'LAYER'")
    if name is None:
        return module
    layers = dict(module.named_modules())
    if name not in layers:
        known = ", ".join(
            n for n, x in layers.items() if isinstance(getattr(x, "weight", 0), Tensor)
        )
        raise typer.BadParameter(
            f"{text!r} has no layer {name!r}; it has {known}", param_hint="'--name'"
        )
    return layers[name]
