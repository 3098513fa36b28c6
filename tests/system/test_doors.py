"""Every door, under every condition: the same number, or the same clear words.

The expected numbers come from a dense float64 Hessian of the bare problem, by ``torch.func``.
"""

from __future__ import annotations

import csv
import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import pytorch_lightning as pl
import torch.nn.functional as F
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from lightning_hessrank import HessianRankMonitor, batch_bound, hessian_rank, rank_bound
from lightning_hessrank.cli import app
from lightning_hessrank.metrics import HessianRank
from tests.oracles import dense_hessian, symmetric_rank
from tests.system.conditions import CONDITIONS, Chain, Lit, batch, numbers
from tests.training import QUIET

HERE = "tests.system.conditions"


class Outcome(NamedTuple):
    """What came out of a door."""

    number: float
    """``nan`` where there is none."""
    said: str = ""
    """Errors and warnings."""


def of_hessian_rank(name: str, folder: Path) -> Outcome:
    model, row = CONDITIONS[name].build(), CONDITIONS[name]
    with row.around():
        return Outcome(float(hessian_rank(model, row.loss, batch(name)).rank))


def of_metric(name: str, folder: Path) -> Outcome:
    model, row = CONDITIONS[name].build(), CONDITIONS[name]
    with row.around():
        metric = HessianRank(model, row.loss)
        metric.update(*batch(name))
        return Outcome(float(metric.compute()))


def of_rank_bound(name: str, folder: Path) -> Outcome:
    model, (inputs, _) = CONDITIONS[name].build(), batch(name)
    with CONDITIONS[name].around():
        bound = rank_bound(model, inputs, loss="mse")
    assert bound.is_theorem, bound.reason
    return Outcome(bound.total)


def of_batch_bound(name: str, folder: Path) -> Outcome:
    model, row = CONDITIONS[name].build(), CONDITIONS[name]
    with row.around():
        bound = batch_bound(model, row.loss, batch(name))
    assert bound.is_theorem, bound.reason
    assert bound.num_samples == len(numbers()[0])
    return Outcome(bound.total)


def of_monitor(name: str, folder: Path) -> Outcome:
    monitor = HessianRankMonitor(progress_bar=False)
    pl.Trainer(**QUIET, max_steps=1, callbacks=[monitor]).fit(
        Lit(name), DataLoader([batch(name)], batch_size=None)
    )
    return Outcome(float(monitor.history[0]["rank"]) if monitor.history else math.nan)


def of_measure(name: str, folder: Path) -> Outcome:
    folder.mkdir()
    trainer = pl.Trainer(**QUIET, max_steps=0)
    trainer.strategy.connect(Lit(name))
    trainer.save_checkpoint(folder / "one.ckpt")
    given = ("--checkpoints", str(folder), "--data", f'{HERE}:batch("{name}")')
    found = CliRunner().invoke(app, ["measure", f'{HERE}:Lit("{name}")', *given])
    text = re.sub(r"\s+", " ", found.output)
    table = folder / "hessrank" / "measurements.csv"
    if not table.exists():
        return Outcome(math.nan, text)
    (row,) = csv.DictReader(table.open(encoding="utf-8"))
    return Outcome(float(row["hessian/rank"]), text)


def of_bound(name: str, folder: Path) -> Outcome:
    shapes = [piece for shape in CONDITIONS[name].shapes for piece in ("--input", shape)]
    model = f'{HERE}:network("{name}")'
    found = CliRunner().invoke(app, ["bound", model, *shapes, "--format", "json"])
    assert found.exit_code == 0, found.output
    return Outcome(json.loads(found.stdout)["total"])


ADAPTERS: dict[str, Callable[[str, Path], Outcome]] = {
    "hessian_rank": of_hessian_rank,
    "HessianRank": of_metric,
    "rank_bound": of_rank_bound,
    "batch_bound": of_batch_bound,
    "monitor": of_monitor,
    "hessrank measure": of_measure,
    "hessrank bound": of_bound,
}
#: One row of each kind through the doors that take a Trainer's time; the others are slow.
QUICK = {"plain", "tuple targets", "wrong second derivative"}
ROWS = [
    pytest.param(
        door,
        name,
        id=f"{name}-{door}",
        marks=[pytest.mark.slow]
        if door in ("hessrank measure", "monitor") and name not in QUICK
        else [],
    )
    for name, row in CONDITIONS.items()
    for door in ADAPTERS
    if door in row.doors
]


@pytest.fixture(scope="module")
def rank() -> int:
    """Of the Hessian of the bare problem."""
    x, y = (t.double() for t in numbers())
    return symmetric_rank(dense_hessian(Chain().double(), F.mse_loss, [(x, y)]))


def outcome(door: str, name: str, folder: Path) -> Outcome:
    """Go through a door; what it raises and what it warns of is what it says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            number, said = ADAPTERS[door](name, folder)
        except (ArithmeticError, NotImplementedError, ValueError) as error:
            number, said = math.nan, str(error)
    return Outcome(number, " ".join([said, *(str(w.message) for w in caught)]))


@pytest.mark.parametrize(("door", "name"), ROWS)
def test_every_door_under_every_condition(door: str, name: str, rank: int, tmp_path: Path) -> None:
    found, says = outcome(door, name, tmp_path / "run"), CONDITIONS[name].says
    if says:
        assert math.isnan(found.number)
        assert re.search(says, found.said, re.S), found.said
    elif door == "batch_bound":  # of the numbers, and so the same whatever they come in
        assert found.number == outcome(door, "plain", tmp_path / "plain").number >= rank
    else:
        assert found.number == rank, found.said
