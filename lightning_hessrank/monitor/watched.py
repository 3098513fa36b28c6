"""What other callbacks watch: a name that the method does not log is served all the same.

``EarlyStopping("hessian/rank")`` ends the run with an error if there is no such metric, and there
is none where ``method="auto"`` has come to estimates, which have names of their own. Whoever
watches one name is given the rank as it could be found, and told so. In logs, estimates keep their
names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_hessrank.dashboard.tags import is_exact
from lightning_hessrank.results import Measurement


def watched_names(callbacks: Iterable[Any]) -> dict[str, str]:
    """Return the names that callbacks monitor, each with the class of the callback."""
    return {
        name: type(callback).__name__
        for callback in callbacks
        if isinstance(name := getattr(callback, "monitor", None), str)
    }


def stand_ins(
    measurement: Measurement, logged: Mapping[str, float], watched: Iterable[str], name: str
) -> dict[str, float]:
    """Return values for watched names that an estimate does not log, or that an exact rank doesn't.

    Args:
        measurement: what was found.
        logged: its scalars.
        watched: names that callbacks monitor.
        name: the monitor's.
    """
    total, bound = measurement.total, measurement.bound
    if is_exact(total):
        low, high = total.interval
        others = {f"{name}-estimate/rank": total.rank}
        others |= {f"{name}-estimate/rank_lower": low, f"{name}-estimate/rank_upper": high}
    else:
        over_bound = total.rank / bound.total if bound is not None and bound.total else math.nan
        others = {f"{name}/rank": total.rank, f"{name}/rank_over_bound": over_bound}
        others[f"{name}/rank_over_parameters"] = total.rank / total.num_parameters
    for estimate in (measurement.outer, measurement.functional):
        if estimate is not None:
            group = f"{name}-estimate" if is_exact(estimate) else name
            others[f"{group}/rank_{estimate.part}"] = estimate.rank
    return {tag: float(others[tag]) for tag in watched if tag in others and tag not in logged}
