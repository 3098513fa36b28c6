"""``hessrank sweep``: rank, bound and √p over a family of networks."""

from __future__ import annotations

import ast
import enum
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from lightning_hessrank.cli.family import (
    MAX_SAMPLES,
    Family,
    MeasurementError,
    Pairs,
    Row,
    Varied,
    gaussian,
    write_rows,
)
from lightning_hessrank.cli.options import Loss, Model, input_option, named_option, output_option
from lightning_hessrank.cli.parameters import (
    fail,
    find_loss,
    parse_shape,
    user_code,
    warnings_as_lines,
)
from lightning_hessrank.cli.spec import Spec
from lightning_hessrank.dashboard.figures import png
from lightning_hessrank.dashboard.figures.growth import growth_figure, root_fit
from lightning_hessrank.network.pairs import as_pairs
from lightning_hessrank.results import validity

#: What every rank in the table is.
_MEANING = "rank: number of eigenvalues beyond p·eps·max|λ| (machine precision of float64), exact"


class Exact(str, enum.Enum):
    """How exact ranks are found."""

    exact = "exact"
    dense = "dense"
    sketch = "sketch"


def sweep(
    model: Model,
    *,
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=VALUES",
            show_default=False,
            help="A parameter of MODEL and its values: width=8,16,32. Repeated: all combinations.",
        ),
    ],
    inputs: Annotated[
        str | None,
        input_option(
            "Shape of one sample, without the batch dimension: 3,32,32, for Gaussian data."
        ),
    ] = None,
    data: Annotated[
        Spec | None,
        named_option(
            "--data",
            "DATA",
            "Data instead of Gaussian ones, named like MODEL: an (inputs, targets) pair, or "
            "several batches of such.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Number of Gaussian samples. Default: twice the numbers in one sample, at most "
            f"{MAX_SAMPLES}.",
        ),
    ] = None,
    loss: Loss = "mse",
    method: Annotated[
        Exact,
        typer.Option(help="exact: dense, or sketch for large networks far below their theorem."),
    ] = Exact.exact,
    seed: Annotated[int, typer.Option(help="Of weights, data and probes.")] = 0,
    output: Annotated[Path, output_option("Where sweep.csv and sweep.png go.")] = Path(),
) -> None:
    """Measure exact rank and bound over a family of networks, and fit √p to them.

    MODEL is built once for each value, at the random weights of its constructor, and measured in
    evaluation mode. Every rank is exact, at machine precision. The table goes to sweep.csv as it
    grows; sweep.png shows the ranks against √p, where growth like √p is a straight line.

    For example,

    hessrank sweep my_package.models:Net --input 3,32,32 --vary width=8,16,32 --loss cross_entropy

    hessrank sweep 'train.py:Net(depth=2)' --data train.py:batch --vary width=8,16 --vary bias=True
    """
    varied = [parse_vary(text) for text in vary]
    _check(model, varied, inputs, data, samples)
    known_loss = find_loss(loss)
    source: Callable[[nn.Module], Pairs]
    if data is None:
        shape = parse_shape(str(inputs))

        def source(network: nn.Module) -> Pairs:
            return gaussian(network, shape, samples, known_loss, seed)
    else:
        given = _given(data)

        def source(network: nn.Module) -> Pairs:
            return given

    family = Family(model, varied, known_loss, source, method.value, seed)
    rows: list[Row] = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        with warnings_as_lines():
            for row in family.measure():
                rows.append(row)
                write_rows(output / "sweep.csv", varied, rows)
                _print_row(varied, row, first=len(rows) == 1)
        picture = growth_figure([x.growth for x in rows], _title(rows), _subtitle(model, varied))
        (output / "sweep.png").write_bytes(png(picture)[0])
    except MeasurementError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write to {output}: {error}")
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; {output / 'sweep.csv'} has what was measured", err=True)
        raise typer.Exit(130) from None
    typer.echo(
        f"\n{_MEANING}; loss {loss}\n{_title(rows)}\n{output / 'sweep.csv'}\n{output / 'sweep.png'}"
    )
    if any(math.isnan(row.estimate.rank) for row in rows):
        fail("a loss or its Hessian was not finite")


def parse_vary(text: str) -> Varied:
    """Read ``width=8,16,32``; words that are no Python literals are strings.

    Raises:
        BadParameter: it has another form.
    """
    name, equals, values = (piece.strip() for piece in text.partition("="))
    pieces = [piece.strip() for piece in values.split(",")]
    if not equals or not name.isidentifier() or not all(pieces):
        raise typer.BadParameter(
            f"{text!r} does not vary a parameter; write its name and values, as width=8,16,32",
            param_hint="'--vary'",
        )
    try:
        return Varied(name, ast.literal_eval(f"({values},)"))
    except (ValueError, SyntaxError):  # not all of them are literals
        return Varied(name, tuple(map(_literal, pieces)))


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _check(
    model: Spec,
    varied: Sequence[Varied],
    inputs: str | None,
    data: Spec | None,
    samples: int | None,
) -> None:
    """Raise BadParameter unless the options fit each other and the model."""
    if isinstance(model.target, nn.Module):
        raise typer.BadParameter(
            f"{model.text!r} is a module already, whose size cannot be varied; name the class or "
            "function that builds it",
            param_hint="'MODEL'",
        )
    names, known = [v.name for v in varied], _parameters(model)
    for name in names:
        if known is not None and name not in known:
            raise typer.BadParameter(
                f"{model.text!r} has no parameter {name!r}; it has {', '.join(known) or 'none'}",
                param_hint="'--vary'",
            )
        if name in model.kwargs or names.count(name) > 1:
            where = "in MODEL too" if name in model.kwargs else "twice"
            raise typer.BadParameter(
                f"{name!r} is given {where}; give it once", param_hint="'--vary'"
            )
    if (inputs is None) == (data is None):
        raise typer.BadParameter(
            "give either the shape of Gaussian samples, as --input 3,32,32, or --data",
            param_hint="'--input'",
        )
    if data is not None and samples is not None:
        raise typer.BadParameter(
            "it counts Gaussian samples; leave it out with --data", param_hint="'--samples'"
        )


def _parameters(model: Spec) -> list[str] | None:
    """Names that the model takes, or ``None`` where it takes any or does not tell."""
    try:
        parameters = inspect.signature(model.target).parameters.values()
    except (TypeError, ValueError):
        return None
    return (
        None if any(p.kind is p.VAR_KEYWORD for p in parameters) else [p.name for p in parameters]
    )


def _given(data: Spec) -> Pairs:
    with user_code(f"building {data.text!r}", "'--data'"):
        built = data.build()
    try:
        return as_pairs(built)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="'--data'") from error


def _print_row(varied: Sequence[Varied], row: Row, *, first: bool) -> None:
    """Print one line of the table, behind its header if it is the first."""
    widths = [max(len(v.name), *(len(str(x)) for x in v.values)) for v in varied]
    if first:
        names = [f"{v.name:>{w}}" for v, w in zip(varied, widths, strict=True)]
        head = (f"{'parameters':>10}", f"{'rank':>8}", f"{'bound':>8}", "method", f"{'gap':>8}")
        typer.echo("  ".join([*names, *head, "samples", "the bound is"]))
    values = [f"{x!s:>{w}}" for x, w in zip(row.values, widths, strict=True)]
    estimate = row.estimate
    bound = "-" if row.bound is None else f"{row.bound.total:,}"
    gap = "-" if estimate.gap is None else f"{estimate.gap:.0e}"
    rest = (f"{estimate.num_parameters:>10,}", f"{estimate.rank:>8,}", f"{bound:>8}")
    worth = "-" if row.bound is None else f"a {validity(row.bound.is_theorem)}"
    how = (f"{estimate.method:<6}", f"{gap:>8}", f"{row.num_samples:>7,}", worth)
    typer.echo("  ".join([*values, *rest, *how]))


def _title(rows: Sequence[Row]) -> str:
    fit = root_fit([row.growth for row in rows])
    title = f"rank ≈ {fit.factor:.3g} √p"
    return title if math.isnan(fit.exponent) else f"{title}; rank ~ p^{fit.exponent:.2f}"


def _subtitle(model: Spec, varied: Sequence[Varied]) -> str:
    names = ", ".join(v.name for v in varied)
    text = f"{model.text}; numbers: {names}"
    return text if len(text) <= 70 else f"numbers: {names}"
