"""Log directories made up for the tests of the tab: what a folder of a researcher may hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

from lightning_hessrank.dashboard import Dashboard
from lightning_hessrank.results import Measurement
from tests.dashboard import synthetic

#: Quick to write: what other tests look at is left out.
TAB = Dashboard(figures=False, histogram=False, text=False, layout=False)
#: What version 0.1.0 wrote.
OLD = Dashboard(figures=False, tab=False)
#: A name that would be markup, if it were taken for it.
HOSTILE = "<img src=x onerror=alert(1)> & co"


def rising(steps: int = 12, *, every: int = 15, layers: int = 4) -> Iterator[Measurement]:
    """A ReLU network whose exact rank rises across its reference line."""
    for i in range(steps):
        share = i / max(1, steps - 1)
        rank = round(599 + 355 * (1 - math.exp(-3 * share)) / (1 - math.exp(-3)))
        one = synthetic.measurement(
            i * every,
            layers=layers,
            total=synthetic.dense(1210, rank, seed=i, decades=5 + share),
            outer=synthetic.dense(1210, min(510, rank - 90), part="outer", seed=i),
            functional=synthetic.dense(1210, rank - 250, part="functional", seed=i),
            loss=2.3 * math.exp(-2 * share) + 0.05,
            num_samples=200,
            module_mode="eval",
        )
        yield replace(one, warnings=("a weight penalty was found in the loss",) if i == 1 else ())


def falling(steps: int = 12, *, every: int = 15, width: int = 1) -> Iterator[Measurement]:
    """A linear network at its theorem, whose rank falls as it is pruned; no layers."""
    p, bound = 1210 * width**2, 765 * width
    for i in range(steps):
        rank = bound - 12 * width * i
        yield synthetic.measurement(
            i * every,
            layers=0,
            total=synthetic.dense(p, rank, seed=i),
            outer=None,
            functional=None,
            batch_bound=None,
            bound=synthetic.bound(bound, p, is_theorem=True),
            loss=1.8 * math.exp(-i / 5),
            num_samples=200,
            module_mode="eval",
        )


def estimated(steps: int = 12, *, every: int = 15) -> Iterator[Measurement]:
    """A network of which only an estimate is known."""
    for i in range(steps):
        rank = 640 - 18 * i + 6 * math.sin(3 * i)
        total = replace(synthetic.lanczos(p=90_000, rank=rank, std_error=14.0))
        yield synthetic.measurement(
            i * every,
            layers=0,
            stochastic=True,
            total=replace(total, counts={1e-1: rank / 20, 1e-2: rank / 4, 1e-3: rank}),
            bound=synthetic.bound(1450, 90_000),
            num_samples=512,
            module_mode="eval",
        )


def write(
    folder: Path, name: str, measurements: Iterator[Measurement], dashboard: Dashboard = TAB
) -> TensorBoardLogger:
    """Write a run, with two scalars of the user's own; it is still open."""
    logger = TensorBoardLogger(folder, name=name, version="")
    dashboard.start([logger])
    history: list[dict[str, Any]] = []
    for one in measurements:
        history.append(one.record())
        dashboard.write([logger], one, history, one.step)
        accuracy = 1 - one.loss / 3 if math.isfinite(one.loss) else 0.0
        logger.log_metrics({"val_acc": accuracy, "train_loss": one.loss}, step=one.step)
    logger.experiment.flush()
    return logger


def mixed(folder: Path) -> None:
    """Dense and estimated, with layers and without, old and hostile, beside other people's runs."""
    runs: dict[str, tuple[Iterator[Measurement], Dashboard]] = {
        "relu": (rising(), TAB),
        "linear": (falling(), TAB),
        "large": (estimated(), TAB),
        "old": (rising(6), OLD),
        HOSTILE.replace("/", ""): (falling(3), TAB),
    }
    for name, (measurements, dashboard) in runs.items():
        write(folder, name, measurements, dashboard).finalize("success")
    without_callback(folder)


def without_callback(folder: Path) -> None:
    """A run that was not watched."""
    logger = TensorBoardLogger(folder, name="without the callback", version="")
    logger.log_metrics({"train_loss": 1.0}, step=0)
    logger.finalize("success")


def many(folder: Path, runs: int = 20, steps: int = 200, dashboard: Dashboard = TAB) -> None:
    """As many as people have: seeds of some widths, measured often."""
    for i in range(runs):
        width = 1 + i % 4
        template = next(falling(1, width=width))
        found = (
            replace(
                template,
                step=10 * k,
                total=replace(template.total, rank=template.total.rank - (k * (1 + i)) // 20),
            )
            for k in range(steps)
        )
        write(folder, f"width{width}/seed{i // 4}", found, dashboard).finalize("success")
