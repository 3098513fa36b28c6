"""Runs of version 0.1.0, which wrote no records: put together from the scalars that it logged."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning_hessrank.dashboard.tab.records import Json
from lightning_hessrank.dashboard.tab.series import is_number

#: Tags that every measurement logged, and that nobody else will have both of.
_MARKS = ("-bound/parameters", "-time/overhead")

#: Ends of tags after the monitor's name -> entry of a record.
_ENTRIES = {
    "/rank": "rank",
    "/rank_outer": "rank_outer",
    "/rank_functional": "rank_functional",
    "/batch_bound": "batch_bound",
    "/rank_over_bound": "rank_over_bound",
    "-estimate/rank": "rank",
    "-estimate/rank_lower": "rank_lower",
    "-estimate/rank_upper": "rank_upper",
    "-estimate/rank_outer": "rank_outer",
    "-estimate/rank_functional": "rank_functional",
    "-bound/rank": "bound",
    "-bound/rank_outer": "bound_outer",
    "-bound/rank_functional": "bound_functional",
    "-bound/parameters": "num_parameters",
    "-spectrum/gap": "gap",
    "-time/seconds": "seconds",
    "-time/products": "num_products",
    "-time/overhead": "overhead",
    "-time/skipped": "skipped",
}
_COUNT = "-tolerance/rank_"
#: How the text of a bound said what it is worth.
_WORTH = re.compile(r"\((theorem|reference line)\)")

#: Step -> value of one tag.
Points = Mapping[int, float]


def monitors(tags: Iterable[str]) -> list[str]:
    """Names of the monitors (with the logger's prefix) that have logged these tags."""
    there = set(tags)
    ends = _MARKS[0]
    names = [tag.removesuffix(ends) for tag in there if tag.endswith(ends)]
    return sorted(name for name in names if name and name + _MARKS[1] in there)


def is_of(tag: str, name: str) -> bool:
    """Whether a monitor of this name logs such a tag."""
    return tag.startswith((f"{name}/", f"{name}-"))


def records(points: Mapping[str, Points], name: str, bound_text: str = "") -> list[Json]:
    """Put the records of a monitor together.

    Args:
        points: of its scalars, by tag.
        name: of the monitor.
        bound_text: what it wrote of its bound, which says whether it is a theorem.
    """
    worth = _WORTH.search(bound_text)
    found: dict[int, Json] = {}
    for tag, values in points.items():
        entry = _setter(tag.removeprefix(name))
        for step, value in values.items() if entry is not None else ():
            record = found.setdefault(step, {"step": step, "counts": {}})
            if is_number(value) and entry is not None:
                entry(record, value)
    kept = [found[step] for step in sorted(found) if "num_parameters" in found[step]]
    for record in kept:
        record["method"] = "lanczos" if "rank_lower" in record else "exact"
        if worth is not None and "bound" in record:
            record["bound_is_theorem"] = worth.group(1) == "theorem"
    return kept


def layers(points: Mapping[str, Points], name: str) -> tuple[list[list[Any]], list[Json]]:
    """Put the layers' ranks together: their table (without parameters), and the details."""
    front, share = f"{name}-layers/rank/", f"{name}-layers/rank_over_bound/"
    names = [tag.removeprefix(front) for tag in points if tag.startswith(front)]
    steps = sorted({step for layer in names for step in points[front + layer]})
    table = [
        [layer, None, _bound(points[front + layer], points.get(share + layer, {}))]
        for layer in names
    ]
    details = [
        {"step": step, "layers": [_or_none(points[front + x].get(step)) for x in names]}
        for step in steps
    ]
    return table, details


def _setter(end: str) -> Callable[[Json, float], None] | None:
    """How a value with this end of a tag goes into a record."""
    if end.startswith(_COUNT):
        label = end.removeprefix(_COUNT)
        return lambda record, value: record["counts"].__setitem__(label, value)
    entry = _ENTRIES.get(end)
    if entry is None and end == "-spectrum/log10_tolerance":
        return lambda record, value: record.__setitem__("tolerance", 10.0**value)
    if entry is None:
        return None
    return lambda record, value: record.__setitem__(entry, value)


def _bound(ranks: Points, shares: Points) -> int | None:
    """The bound of a layer, from its rank and their ratio, logged in single precision."""
    for step, share in shares.items():
        rank = ranks.get(step, math.nan)
        if is_number(share) and share and is_number(rank) and rank:
            return round(rank / share)
    return None


def _or_none(value: float | None) -> float | None:
    return value if is_number(value) else None
