"""The measurements of a run as a table, for consoles and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_hessrank.results import validity
from lightning_hessrank.text import Table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _interval(record: Mapping[str, Any]) -> str:
    """Of a stochastic count."""
    if "rank_lower" not in record:
        return ""
    return f"{_number(record['rank_lower'])} to {_number(record['rank_upper'])}"


Cells = dict[str, Callable[[Mapping[str, Any]], str]]

#: What changes from one measurement to the next, and what a number means: no rank without its
#: tolerance, no bound without its worth.
_NUMBERS: Cells = {
    "step": lambda x: str(x["step"]),
    "epoch": lambda x: str(x["epoch"]),
    "loss": lambda x: _number(x["loss"]),
    "rank": lambda x: _number(x["rank"]),
    "95 % interval": _interval,
    "outer": lambda x: _number(x.get("rank_outer")),
    "functional": lambda x: _number(x.get("rank_functional")),
    "bound": lambda x: _number(x.get("bound")),
}
_MEANING: Cells = {
    "method": lambda x: str(x["method"]),
    "tolerance": lambda x: f"{x['rtol']:.2g} max|λ|",
    "samples": lambda x: _number(x.get("num_samples")),
    "mode": lambda x: str(x.get("module_mode", "")),
    "parameters": lambda x: str(x["num_parameters"]),
    "bound is a": lambda x: validity(x["bound_is_theorem"]) if "bound" in x else "",
    "limited by": lambda x: str(x.get("limited_by", "")),
}


def tabulate(history: Sequence[Mapping[str, Any]]) -> tuple[Table, str]:
    """Lay out measurements by step, and put in words what all of them have in common."""
    records = sorted(history, key=lambda x: int(x["step"]))
    found = {title: [cell(x) for x in records] for title, cell in (_NUMBERS | _MEANING).items()}
    common = {t: found.pop(t)[0] for t in _MEANING if len(set(found[t])) == 1}
    shown = {title: cells for title, cells in found.items() if any(cells)}
    table = Table(list(shown), list(zip(*shown.values(), strict=True)), words=0)
    return table, ", ".join(f"{title} {value}" for title, value in common.items() if value)
