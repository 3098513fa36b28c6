"""``hessrank toeplitz``: the matrix that a layer is."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from lightning_hessrank.cli.parameters import build_module, fail, parse_shape
from lightning_hessrank.cli.spec import Spec, SpecError


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
        typer.Option(
            "--input",
            "-i",
            metavar="SIZE",
            show_default=False,
            help="Spatial size of the layer's input, without batch and channels: 8 or 8,8.",
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
    from lightning_hessrank.bounds import toeplitz_matrix

    sizes = parse_shape(size)
    module = _layer(layer, name)
    weights = numbered(module)
    try:
        shown = toeplitz_matrix(module if values else weights, sizes)
        pattern = toeplitz_matrix(weights, sizes)
    except (TypeError, ValueError, RuntimeError) as error:
        fail(f"{type(module).__name__} with an input of size {sizes}: {error}")
    rows, columns = shown.shape
    zeros = float((pattern == 0).double().mean())
    typer.echo(f"{module}\n{rows} × {columns}, {zeros:.0%} zeros, ", nl=False)
    typer.echo(f"{_weight(module).numel()} distinct weights\n")
    text = format_matrix(shown, values)
    if max(map(len, text)) <= shutil.get_terminal_size().columns:
        typer.echo("\n".join(text))
    elif save is None:
        fail(f"{columns} columns are too wide for this terminal; pass --save toeplitz.png")
    if save is not None:
        draw(pattern if not values else shown, save, str(module))
        typer.echo(f"\nwritten to {save}")


def numbered(layer: nn.Module) -> nn.Module:
    """Return a layer of the same geometry whose weights are 1, 2, 3 …, in float64."""
    copied = copy.deepcopy(layer).double()
    weight: Any = _weight(copied)
    with torch.no_grad():
        weight.copy_(torch.arange(1.0, weight.numel() + 1).reshape(weight.shape))
    return copied


def format_matrix(matrix: Tensor, values: bool) -> list[str]:
    """Lay out a matrix as aligned lines, zeros as dots."""
    cells = [[_cell(x, values) for x in row] for row in matrix.tolist()]
    width = max(len(cell) for row in cells for cell in row)
    return [" ".join(f"{cell:>{width}}" for cell in row) for row in cells]


def draw(matrix: Tensor, path: Path, title: str) -> None:
    """Draw a matrix into a file: one colour for each value, zeros blank."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6 * min(max(len(matrix) / matrix.shape[1], 0.3), 2) + 0.5), dpi=160)
    axes = figure.subplots()
    blank = torch.where(matrix == 0, torch.nan, matrix).detach().numpy()
    axes.imshow(blank, cmap="viridis", interpolation="nearest")
    axes.set(xlabel="input", ylabel="output", title=title)
    figure.tight_layout()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        fail(f"cannot write {path}: {error}")


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


def _weight(layer: nn.Module) -> Tensor:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        fail(
            f"{type(layer).__name__} has no weight, so no matrix; it takes a Linear or Conv layer "
            "(of a network, name one with --name)"
        )
    return weight
