"""The measurements of a run on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_hessrank.monitor.table import tabulate


def history_table(history: Sequence[Mapping[str, Any]]) -> str:
    """Lay out measurements by step, and below what all of them have in common."""
    table, facts = tabulate(history)
    return f"{table.plain()}\n\n{facts}" if facts else table.plain()
