"""How a run is put together from what was written of it: pure functions on plain dicts.

A run, as the charts take it::

    {"run": "digits/version_0", "name": "hessian", "old": False, "records": [...], "about": {...},
     "metrics": {"val_acc": 0.93}}

Nothing that was read is trusted: an event file may be cut short, or come from somewhere else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_hessrank.dashboard.tab.records import Json, about, compact

#: No spectrum that this package writes has as many points or bins, or begins so far out.
_MOST = 2000
#: Entries of a record that must be numbers, or missing.
_NUMBERS = (
    *("epoch", "rank", "rank_lower", "rank_upper", "rank_outer", "rank_functional", "bound"),
    *("bound_outer", "bound_functional", "batch_bound", "num_parameters", "num_samples", "rtol"),
    *("tolerance", "std_error", "loss", "seconds", "overhead", "skipped"),
)


def parse(text: object) -> Json | None:
    """Return a written text as a dict with a step, or ``None`` where it is none."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def parse_record(text: object) -> Json | None:
    """Return a record whose numbers are numbers, or ``None`` where there is no step."""
    found = parse(text)
    if found is None or not is_number(found.get("step")):
        return None
    record = {k: v for k, v in found.items() if k not in _NUMBERS or is_number(v)}
    counts = record.get("counts")
    record["counts"] = (
        {k: v for k, v in counts.items() if is_number(v)} if isinstance(counts, dict) else {}
    )
    return record


def parse_detail(text: object) -> Json | None:
    """Return a detail whose spectrum is one that can be drawn, or ``None``."""
    found = parse(text)
    if found is None or not is_number(found.get("step")):
        return None
    spectrum = found.get("spectrum")
    lists = ("positive", "negative", "at", "values")
    if not (
        isinstance(spectrum, dict)
        and is_number(spectrum.get("bins"))
        and abs(spectrum["bins"]) < _MOST
        and all(isinstance(spectrum.get(k), list) and len(spectrum[k]) < _MOST for k in lists)
        and all(is_number(x) for k in lists for x in spectrum[k])
    ):
        found.pop("spectrum", None)
    if not isinstance(found.get("layers"), list):
        found.pop("layers", None)
    return found


def by_step(found: Iterable[Json | None]) -> list[Json]:
    """Order by step; of two at the same step (a resumed run) the later one counts."""
    last = {x["step"]: x for x in found if x is not None}
    return [last[step] for step in sorted(last)]


def run_of(
    run: str,
    name: str,
    records: Sequence[Json],
    *,
    facts: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    old: bool = False,
) -> Json:
    """Put a run together.

    Args:
        run: its folder, or any name that tells it from others.
        name: of the monitor, with the logger's prefix.
        records: by step.
        facts: what is the same at all measurements.
        metrics: last values of what the user has logged.
        old: whether it was written before there was a tab, as scalars only.
    """
    return {
        "run": run,
        "name": name,
        "old": old,
        "records": list(records),
        "about": dict(facts or {}),
        "metrics": {k: v for k, v in (metrics or {}).items() if math.isfinite(v)},
    }


def run_of_history(
    history: Sequence[Mapping[str, Any]],
    *,
    run: str,
    name: str,
    facts: Mapping[str, Any] | None = None,
) -> Json:
    """Put a run together from ``monitor.history``."""
    known = facts or (about(history[-1]) if history else {})
    return run_of(run, name, [compact(r) for r in history], facts=known)


def is_number(value: object) -> bool:
    """Whether it is a finite number (``True`` is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
