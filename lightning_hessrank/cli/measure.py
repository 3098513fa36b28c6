"""``hessrank measure``: the ranks of a run that is over, from its checkpoints."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from lightning_hessrank.cli.checkpoints import Checkpoint, CheckpointError, find_checkpoints
from lightning_hessrank.cli.data import reference_data
from lightning_hessrank.cli.history import history_table
from lightning_hessrank.cli.options import Model, named_option, output_option
from lightning_hessrank.cli.parameters import (
    fail,
    parse_method,
    parse_rtol,
    told,
    warnings_as_lines,
)
from lightning_hessrank.cli.recorded import Recorded, recorded_monitors
from lightning_hessrank.cli.spec import Spec
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
        Spec | None,
        named_option(
            "--data",
            "DATA",
            "Other reference data than the run's own, named like MODEL: a LightningDataModule "
            "(its training data), a DataLoader, or one batch as training_step takes it.",
        ),
    ] = None,
    max_samples: Annotated[
        int | None,
        typer.Option(
            min=1, show_default=False, help="Use at most so many samples of DATA. Default: 512."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_option(
            "Where TensorBoard's files and measurements.csv go. Default: hessrank in the folder "
            "of the checkpoints.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            parser=parse_method,
            metavar="METHOD",
            show_default=False,
            help="dense, sketch, lanczos, or auto: by cost and memory, once. Default: the run's.",
        ),
    ] = None,
    rtol: Annotated[
        str | None,
        typer.Option(
            parser=parse_rtol,
            metavar="RTOL",
            show_default=False,
            help="Relative tolerance of the rank, in [0, 1), or machine: the method's own "
            "(lanczos: 1e-3). Default: the run's.",
        ),
    ] = None,
    loss_fn: Annotated[
        Spec | None,
        named_option(
            "--loss-fn",
            "NAME",
            "loss_fn(module, batch) -> scalar, named like MODEL. Default: training_step.",
        ),
    ] = None,
    layers: Annotated[
        bool | None,
        typer.Option(
            "--layers/--no-layers",
            show_default=False,
            help="Also the rank of each layer's diagonal block. Default: as the run.",
        ),
    ] = None,
    fine_layers: Annotated[
        bool,
        typer.Option(
            "--fine-layers",
            help="Also the blocks of query, key, value and gates, and norms between all blocks.",
        ),
    ] = False,
    eigenvalues: Annotated[
        bool,
        typer.Option("--eigenvalues", help="Also save them in the folder eigenvalues (dense)."),
    ] = False,
    mode: Annotated[
        Mode | None,
        typer.Option(show_default=False, help="Of dropout and batch norm. Default: the run's."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            show_default=False, help="Of random probes and shuffled data. Default: the run's, or 0."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(show_default=False, help="Which monitor of the run, where it had several."),
    ] = None,
) -> None:
    """Measure the rank at every checkpoint of a run, as its monitor did or would have.

    MODEL builds the LightningModule; hyperparameters in the checkpoint are passed to it. A run with
    a HessianRankMonitor keeps in its checkpoints what the monitor measured on, and how: that is
    what is taken unless an option says otherwise, so that the ranks are the monitor's to the digit.
    For a run without one, --data is needed, and the defaults are the monitor's.

    Checkpoints are loaded with weights only: no code in them is run. Those that cannot be measured
    are reported and left out (exit code 1). If it is interrupted, the same command goes on where it
    stopped.

    For example,

    hessrank measure train.py:LitNet --checkpoints lightning_logs/version_0

    hessrank measure train.py:LitNet --checkpoints lightning_logs/version_0 --data train.py:LitData

    tensorboard --logdir lightning_logs
    """
    found, failures = find_checkpoints(checkpoints)
    if not found and not failures:
        raise typer.BadParameter(
            f"there is no *.ckpt in {checkpoints} or below", param_hint="'--checkpoints'"
        )
    total = len(found) + len(failures)
    if not found:  # what they would have held is not known
        _report_failures(failures, of=total)
    own = _own(recorded_monitors(found), name)
    _check_data(own, data, max_samples)
    options = {
        "method": method,
        "rtol": rtol,
        "module_mode": None if mode is None else mode.value,
        "layers": "fine" if fine_layers else layers,
        "seed": seed,
    }
    fixed = {key: _resolved(key, value, own) for key, value in options.items()}
    fixed["max_samples"] = max_samples or 512
    names = {
        "model": model.text,
        "data": data.text if data else f"the run's own {own.fingerprint if own else ''}",
        "loss_fn": loss_fn.text if loss_fn else None,
    }
    folder = output or checkpoints / "hessrank"
    with frozen_rng(fixed["seed"]), warnings_as_lines():
        further = {
            "data": None if data is None else reference_data(data),
            "loss_fn": None if loss_fn is None else loss_fn.target,
            "on_error": "raise",
            # a method that is settled takes its time: nobody waits with a training run
            "max_seconds": 60.0 if fixed["method"] == "auto" else None,
            "name": own.name if own else "hessian",
            "save_eigenvalues": folder / "eigenvalues" if eigenvalues else None,
        }
        _say_what_differs(own, data, loss_fn)
        run = _open(folder, {**fixed, **further}, {**fixed, **names}, own)
        try:
            _measure_all(run, model, found, failures)
        except KeyboardInterrupt:
            typer.echo("\ninterrupted; the same command goes on from here", err=True)
            raise typer.Exit(130) from None
        finally:
            run.close()
    _report(run, failures, of=total)


def _own(monitors: dict[str, Recorded], name: str | None) -> Recorded | None:
    """Return the monitor that the run had, if it had one."""
    listed = ", ".join(map(repr, monitors))
    if name is not None and name not in monitors:
        had = f"the run had {listed}" if monitors else "the checkpoints hold none"
        raise typer.BadParameter(f"there is no monitor {name!r}: {had}", param_hint="'--name'")
    if name is None and len(monitors) > 1:
        raise typer.BadParameter(
            f"the run had several monitors: {listed}; name one of them", param_hint="'--name'"
        )
    return monitors[name] if name is not None else next(iter(monitors.values()), None)


def _check_data(own: Recorded | None, data: Spec | None, max_samples: int | None) -> None:
    """Raise unless it is clear what to measure on."""
    if data is None and (own is None or not own.has_data):
        why = (
            "no HessianRankMonitor has left its reference data in these checkpoints"
            if own is None
            else "the monitor's reference data were too large to be kept with the checkpoints"
        )
        raise typer.BadParameter(f"{why}; name some, as train.py:LitData", param_hint="'--data'")
    if data is None and max_samples is not None:
        raise typer.BadParameter(
            "it goes with --data: the run's own reference data are taken whole",
            param_hint="'--max-samples'",
        )


#: What holds where neither an option nor the run's monitor says anything: the monitor's defaults.
_DEFAULTS = {"method": "auto", "rtol": None, "module_mode": "eval", "layers": False, "seed": 0}


def _resolved(key: str, value: Any, own: Recorded | None) -> Any:
    """What an option means for this run."""
    if value is not None:
        return None if value == "machine" else value
    return _DEFAULTS[key] if own is None else own.asked(key, _DEFAULTS[key])


def _say_what_differs(own: Recorded | None, data: Spec | None, loss_fn: Spec | None) -> None:
    """Warn where the numbers will not be those of the run's monitor."""
    if own is None:
        return
    if data is not None:
        typer.echo(
            "Warning: measured on other data than the run's own, so the ranks are not those of its "
            "monitor (without --data they are)",
            err=True,
        )
    if loss_fn is None and own.asked("loss_fn") is not None:
        typer.echo(
            f"Warning: the run's monitor was given the loss_fn {own.asked('loss_fn')}, this is "
            "training_step; pass --loss-fn for the same ranks",
            err=True,
        )


def _report(run: OfflineRun, failures: dict[Path, str], of: int) -> None:
    """Print the table, where everything is, and what could not be measured, each reason once."""
    if run.history:
        typer.echo(history_table(run.history))
        typer.echo(f"\ntensorboard --logdir {run.folder}\n{run.table}")
    _report_failures(failures, of)


def _report_failures(failures: dict[Path, str], of: int) -> None:
    """Print what could not be measured, each reason once, and end with exit code 1 if any was."""
    reasons: dict[str, list[Path]] = {}
    for path, reason in failures.items():
        reasons.setdefault(reason, []).append(path)
    for reason, paths in reasons.items():
        more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
        if len(paths) == of > 1:
            typer.echo(f"not measured: any of the {of} checkpoints: {reason}", err=True)
        else:
            typer.echo(f"not measured: {paths[0]}{more}: {reason}", err=True)
    if failures:
        raise typer.Exit(1)


def _open(
    folder: Path, settings: dict[str, Any], fixed: dict[str, Any], own: Recorded | None
) -> OfflineRun:
    """Begin or continue measurements in a folder."""
    from lightning_hessrank.cli.offline import FolderError, OfflineRun  # slow to import
    from lightning_hessrank.monitor.settings import Settings

    try:
        return OfflineRun(folder, Settings(**settings), fixed, own)
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
                failures[checkpoint.path] = told(error)
            display.advance(task)
