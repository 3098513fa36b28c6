"""What works, what is said, what is refused: `compatibility.md` is the table of these tests.

Every row trains for one step with the monitor. "Works" means that the rank was measured in float64,
nothing was said, and a Hessian-vector product agreed with finite differences of the gradient.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.monitor.callback import HessianRankWarning
from tests.slow import first
from tests.system.rows import CASES, REFUSED, Case
from tests.training import QUIET, TRAINS

pytestmark = TRAINS

TABLE = Path(__file__).with_name("compatibility.md")
FINAL = " (it will not be tried again in this run)"


@pytest.mark.parametrize("case", first(12, CASES), ids=[f"{c.group}: {c.name}" for c in CASES])
def test_row(case: Case) -> None:
    torch.manual_seed(0)
    monitor = HessianRankMonitor(method="dense", **case.monitor)
    module = case.build()
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 1, **case.trainer}, callbacks=[monitor])
    loader: Any = DataLoader([case.batch()], batch_size=None, collate_fn=lambda batch: batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader)
    if hasattr(held := getattr(module, "held", None), "close"):
        held.close()
    said = [
        str(w.message).removeprefix("HessianRankMonitor: ").removesuffix(FINAL)
        for w in caught
        if w.category is HessianRankWarning
    ]
    assert trainer.state.finished
    if case.outcome.startswith(REFUSED):
        assert monitor.history == []
        (first,) = {
            re.sub(r"^no rank (was measured at step \d+|will be measured): ", "", x)
            for x in said
            if "measurements failed" not in x
        }
        expected = re.escape(case.outcome.removeprefix(f"{REFUSED}: ")).replace(r"\*", ".*")
        assert re.fullmatch(expected, first), first
        return
    assert said == ([] if case.outcome == "works" else [case.outcome])
    record = monitor.history[0]
    assert ("rank_outer" in record) is (case.parts and not math.isnan(record["rank"]))
    if not case.outcome.startswith("the rank is nan"):
        assert 0 < record["rank"] <= record["num_parameters"]
        assert monitor.state_dict()["history"]


def test_table_is_that_of_the_rows() -> None:
    """To write it anew: ``python -m tests.system.test_compatibility``."""
    assert TABLE.read_text() == render()


def render() -> str:
    lines = [
        "# What works, what is said, what is refused",
        "",
        "Made by `test_compatibility.py`, which trains each row with the monitor and fails if this",
        "file says anything else. *Works*: the rank was measured in float64 and a Hessian-vector",
        "product agreed with finite differences. Training went on in every row.",
        "",
        "| | | outcome |",
        "|---|---|---|",
    ]
    for case in CASES:
        outcome = case.outcome.replace("|", "\\|")
        kind, _, text = outcome.partition(": ")
        shown = f"**refused**: {text}" if kind == REFUSED else outcome
        if outcome not in ("works",) and kind != REFUSED:
            shown = f"works, and says: {outcome}"
        lines.append(f"| {case.group} | {case.name} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(render())
