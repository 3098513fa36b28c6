"""The last word of a run: what its ranks did, in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_hessrank.results import validity

History = Sequence[Mapping[str, Any]]


def verdict(history: History, *, name: str, skipped: int = 0, failed: int = 0) -> str:
    """Sum up a run in one line.

    Args:
        history: records of its measurements.
        name: of the monitor.
        skipped: measurements that the time budget left out.
        failed: measurements that failed.
    """
    if not history:
        return f"{name}: no rank was measured in this process{_missing(skipped, failed)}"
    last = history[-1]
    pieces = [f"rank {_from_to(history)} of {last['num_parameters']:,} parameters"]
    if "bound" in last:
        pieces.append(f"bound {last['bound']:,} ({validity(last['bound_is_theorem'])})")
    pieces.append(f"{last['method']}, beyond {last['rtol']:.2g} max|λ|")
    if "num_samples" in last:
        pieces.append(f"{last['num_samples']:,} samples, {last['module_mode']} mode")
    if last.get("limited_by"):
        pieces.append(f"limited by {last['limited_by']}")
    many = f"{len(history)} measurement{'s' if len(history) > 1 else ''}"
    return f"{name}: {'; '.join(pieces)}; {many}{_missing(skipped, failed)}"


def where_to_look(trainer: Any, state_key: str) -> str:
    """Say where the history is; a process that was spawned takes its callbacks away with it."""
    launcher = type(getattr(trainer.strategy, "launcher", None)).__name__
    if "MultiProcessing" not in launcher:
        return "See monitor.history and monitor.plot()"
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not path:
        return (
            "The strategy spawned this process, so that monitor.history is empty in your script; "
            "the loggers have all, and so have checkpoints, of which this run writes none"
        )
    return (
        "The strategy spawned this process, so that monitor.history is empty in your script; see "
        f"torch.load({path!r})['callbacks'][{state_key!r}]['history']"
    )


def _from_to(history: History) -> str:
    """First and last rank; between them what went beyond both."""
    ranks = [record["rank"] for record in history]
    first, last = _rank(history[0]), _rank(history[-1])
    finite = [x for x in ranks if not math.isnan(x)]
    text = first if first == last else f"{first} → {last}"
    if finite and {min(finite), max(finite)} - {ranks[0], ranks[-1]}:
        text += f" (between {min(finite):,.5g} and {max(finite):,.5g})"
    return text


def _rank(record: Mapping[str, Any]) -> str:
    rank, error = record["rank"], record.get("std_error")
    if error and math.isfinite(error):  # two digits of it, and no more of the rank than it leaves
        digits = max(0, 1 - math.floor(math.log10(error)))
        return f"{rank:,.{digits}f} ± {error:,.{digits}f} (standard error)"
    return f"{rank:,.6g}" if isinstance(rank, float) else f"{rank:,}"


def _missing(skipped: int, failed: int) -> str:
    """What there is no measurement of, and why."""
    reasons = []
    if skipped:
        reasons.append(f"{skipped} skipped by the time budget")
    if failed:
        reasons.append(f"{failed} failed, as warned above")
    return f" ({', '.join(reasons)})" if reasons else ""
