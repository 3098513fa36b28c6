"""``hessrank measure``: the ranks of a run that is over, from its checkpoints."""

from __future__ import annotations

import enum
import sys
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
from lightning_hessrank.cli.history import history_table
from lightning_hessrank.cli.parameters import Model, fail, parse_method, parse_spec
from lightning_hessrank.cli.spec import Spec, SpecError
from lightning_hessrank.network.batches import list_tensors
from lightning_hessrank.subject.isolation import frozen_rng

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
    found, failures = find_checkpoints(checkpoints)
    if not found and not failures:
        raise typer.BadParameter(
            f"there is no *.ckpt in {checkpoints} or below", param_hint="'--checkpoints'"
        )
    fixed = {
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
    with frozen_rng(seed), _warnings_as_lines():
        further = {
            "data": _reference_data(data),
            "loss_fn": None if loss_fn is None else loss_fn.target,
            "on_error": "raise",
        }
        run = _open(output or checkpoints / "hessrank", {**fixed, **further}, {**fixed, **names})
        try:
            _measure_all(run, model, found, failures)
        except KeyboardInterrupt:
            typer.echo("\ninterrupted; the same command goes on from here", err=True)
            raise typer.Exit(130) from None
        finally:
            run.close()
    typer.echo(history_table(run.history))
    typer.echo(f"\ntensorboard --logdir {run.folder}\n{run.table}")
    for path, reason in failures.items():
        typer.echo(f"not measured: {path}: {reason}", err=True)
    if failures:
        raise typer.Exit(1)


def _open(folder: Path, settings: dict[str, Any], fixed: dict[str, Any]) -> OfflineRun:
    """Begin or continue measurements in a folder."""
    from lightning_hessrank.cli.offline import FolderError, OfflineRun  # slow to import
    from lightning_hessrank.monitor.settings import Settings

    try:
        return OfflineRun(folder, Settings(**settings), fixed)
    except FolderError as error:
        fail(str(error))
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


def _measure_all(
    run: OfflineRun, model: Spec, found: list[Checkpoint], failures: dict[Path, str]
) -> None:
    """Measure what the folder does not hold yet, and note what cannot be measured."""
    from lightning_hessrank.monitor.progress import display_bar

    todo, conflicts = run.pending(found)
    failures.update(conflicts)
    skipped = len(found) - len(todo) - len(conflicts)
    if skipped:
        typer.echo(f"{skipped} of {len(found)} are measured already, or copies", err=True)
    console = Console(stderr=True)
    shown = bool(todo) and console.is_terminal
    with Progress(console=console, transient=True, disable=not shown) as display:
        task = display.add_task("measuring", total=len(todo))
        for checkpoint in todo:
            display.update(task, description=checkpoint.path.name)
            try:
                run.measure(checkpoint, checkpoint.build(model), display_bar(display))
            except CheckpointError as error:
                failures[checkpoint.path] = str(error)
            except Exception as error:  # of any kind: the other checkpoints may do
                failures[checkpoint.path] = f"{type(error).__name__}: {error}"
            display.advance(task)


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


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print our warnings as lines, without the source that warnings usually show."""

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        print(f"Warning: {message}", file=sys.stderr)  # where the display's stand-in shows it

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # restored with the filters
        yield
