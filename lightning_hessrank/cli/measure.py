"""``hessrank measure``: the ranks of a run that is over, from its checkpoints."""

from __future__ import annotations

import enum
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader

from lightning_hessrank.cli.checkpoints import Checkpoint, CheckpointError, find_checkpoints
from lightning_hessrank.cli.parameters import Model, fail, parse_method, parse_spec
from lightning_hessrank.cli.spec import Spec, SpecError
from lightning_hessrank.network.batches import list_tensors

if TYPE_CHECKING:
    from lightning_hessrank.cli.offline import OfflineRun


class Mode(str, enum.Enum):
    """In which mode the network is measured."""

    eval = "eval"
    train = "train"


def measure(
    model: Model,
    *,
    checkpoints: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            show_default=False,
            help="Folder with the checkpoints (*.ckpt, also in subfolders) of one run.",
        ),
    ],
    data: Annotated[
        Spec,
        typer.Option(
            parser=parse_spec,
            metavar="DATA",
            show_default=False,
            help="What gives the reference data, named like MODEL: a LightningDataModule (its "
            "training data), a DataLoader, or one batch as training_step takes it.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            show_default=False,
            help="Where TensorBoard's files and measurements.csv go. Default: DIR/hessrank.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            parser=parse_method,
            metavar="METHOD",
            help="dense, sketch, lanczos, or auto: by cost and memory, once.",
        ),
    ] = "auto",
    rtol: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            show_default=False,
            help="Relative tolerance of the rank. Default: machine precision (lanczos: 1e-3).",
        ),
    ] = None,
    max_samples: Annotated[
        int, typer.Option(min=1, help="Use at most so many samples of the data.")
    ] = 512,
    loss_fn: Annotated[
        Spec | None,
        typer.Option(
            parser=parse_spec,
            metavar="NAME",
            show_default=False,
            help="loss_fn(module, batch) -> scalar, named like MODEL. Default: training_step.",
        ),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also the rank of each layer's diagonal block.")
    ] = False,
    mode: Annotated[Mode, typer.Option(help="Mode of dropout and batch norm.")] = Mode.eval,
    seed: Annotated[int, typer.Option(help="Of random probes and of shuffled data.")] = 0,
) -> None:
    """Measure the rank at every checkpoint of a run, as the callback would have.

    MODEL builds the LightningModule; hyperparameters in the checkpoint are passed to it.
    Checkpoints are loaded with weights only: no code in them is run. Those that cannot be measured
    are reported and left out (exit code 1). If it is interrupted, the same command goes on where it
    stopped.

    For example,

    hessrank measure train.py:LitNet --checkpoints lightning_logs/version_0 --data train.py:LitData

    tensorboard --logdir lightning_logs
    """
    from pytorch_lightning import seed_everything

    from lightning_hessrank.cli.offline import SettingsChangedError, open_run

    for namespace in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(namespace).setLevel(logging.WARNING)  # no tips, no list of devices
    seed_everything(seed, verbose=False)
    found, failures = find_checkpoints(checkpoints)
    if not found and not failures:
        raise typer.BadParameter(
            f"there is no *.ckpt in {checkpoints} or below", param_hint="'--checkpoints'"
        )
    settings = {
        "method": method,
        "rtol": rtol,
        "max_samples": max_samples,
        "module_mode": mode.value,
        "layers": layers,
        "seed": seed,
    }
    names = {
        "model": model.text,
        "data": data.text,
        "loss_fn": None if loss_fn is None else loss_fn.text,
    }
    try:
        run = open_run(
            output or checkpoints / "hessrank",
            data=_reference_data(data),
            loss_fn=None if loss_fn is None else loss_fn.target,
            settings=settings,
            names=names,
        )
    except SettingsChangedError as error:
        fail(str(error))
    try:
        with _warnings_as_lines():
            _measure_all(run, model, found, failures)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    finally:
        run.close()
    typer.echo(_table(run.monitor.history))
    typer.echo(f"\ntensorboard --logdir {run.folder}\n{run.table.path}")
    for path, reason in failures.items():
        typer.echo(f"not measured: {path}: {reason}", err=True)
    if failures:
        raise typer.Exit(1)


def _measure_all(
    run: OfflineRun, model: Spec, found: list[Checkpoint], failures: dict[Path, str]
) -> None:
    """Measure what the folder does not hold yet, and note what cannot be measured."""
    todo, conflicts = run.pending(found)
    failures.update(conflicts)
    skipped = len(found) - len(todo) - len(conflicts)
    if skipped:
        typer.echo(f"{skipped} of {len(found)} are measured already, or copies", err=True)
    if not todo:
        return
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=len(todo))
        for checkpoint in todo:
            progress.update(task, description=checkpoint.path.name)
            try:
                run.measure(checkpoint, checkpoint.build(model))
            except CheckpointError as error:
                failures[checkpoint.path] = str(error)
            except Exception as error:  # of any kind: the other checkpoints may do
                failures[checkpoint.path] = f"{type(error).__name__}: {error}"
            progress.advance(task)


def _reference_data(spec: Spec) -> Any:
    """Return a ``DataLoader`` or a batch from what DATA names."""
    try:
        data = spec.build()
    except SpecError as error:
        raise typer.BadParameter(str(error), param_hint="'--data'") from error
    if hasattr(data, "train_dataloader"):
        data.prepare_data()
        data.setup("fit")
        data = data.train_dataloader()
    if not isinstance(data, DataLoader) and not list_tensors(data):
        raise typer.BadParameter(
            f"{spec.text!r} gives a {type(data).__name__}; it takes a LightningDataModule, a "
            "DataLoader, or one batch of tensors",
            param_hint="'--data'",
        )
    return data


def _table(history: list[dict[str, Any]]) -> str:
    """Lay out the measurements as text."""
    columns = {
        "step": "step",
        "epoch": "epoch",
        "loss": "loss",
        "rank": "rank",
        "rank_outer": "outer",
        "rank_functional": "functional",
        "bound": "bound",
        "num_parameters": "parameters",
    }
    shown = {k: title for k, title in columns.items() if any(k in x for x in history)}
    rows = [list(shown.values())]
    for record in history:
        values = [record.get(k, "") for k in shown]
        rows.append([f"{x:.5g}" if isinstance(x, float) else str(x) for x in values])
    widths = [max(len(row[i]) for row in rows) for i in range(len(shown))]
    return "\n".join(
        "  ".join(f"{x:>{w}}" for x, w in zip(row, widths, strict=True)) for row in rows
    )


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print our warnings as lines, without the source that warnings usually show."""

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        typer.echo(f"Warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # restored with the filters
        yield
