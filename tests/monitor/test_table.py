"""The table of a run: what changes is a column, what does not is said once."""

from __future__ import annotations

from typing import Any

from lightning_hessrank.monitor.table import tabulate

RECORD: dict[str, Any] = {
    **{"step": 8, "epoch": 1, "loss": 0.5, "rank": 7, "num_parameters": 9, "bound": 8},
    **{"method": "dense", "rtol": 1e-3, "bound_is_theorem": True, "num_samples": 16},
}


def test_what_all_have_in_common_is_said_once() -> None:
    table, facts = tabulate([RECORD])
    assert list(table.columns) == ["step", "epoch", "loss", "rank", "bound"]
    assert facts == (
        "method dense, tolerance 0.001 max|λ|, samples 16, parameters 9, bound is a theorem"
    )


def test_what_differs_has_a_column() -> None:
    other = {**RECORD, "step": 9, "num_samples": 12, "limited_by": "the batch bound 7"}
    table, facts = tabulate([other, RECORD])
    assert table.columns[-2:] == ["samples", "limited by"]
    assert [row[-2:] for row in table.rows] == [("16", ""), ("12", "the batch bound 7")]
    assert "samples" not in facts
