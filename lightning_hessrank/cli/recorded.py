"""What a run's own monitor left in its checkpoints: its meaning, its data, its bound."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_hessrank.cli.checkpoints import Checkpoint

#: Keys by which a monitor's state is told from that of any other callback.
_MARKS = {"meaning", "history", "reference", "bound"}


@dataclass(frozen=True)
class Recorded:
    """The state of one monitor in a checkpoint."""

    name: str
    """The monitor's ``name``."""
    state: Mapping[str, Any]

    @property
    def has_data(self) -> bool:
        """Whether the reference data themselves were kept, not only their fingerprint."""
        return self.state["reference"].get("batches") is not None

    @property
    def fingerprint(self) -> str:
        """Of the reference data, shortened as in the history; empty where there were none."""
        return str(self.state["reference"].get("fingerprint", ""))[:16]

    def asked(self, name: str, default: Any = None) -> Any:
        """Return what the monitor was asked for, as far as its state tells."""
        known = {**self.state.get("asked", {}), **self.state["meaning"]}
        return known.get(name, default)


def recorded_monitors(checkpoints: Sequence[Checkpoint]) -> dict[str, Recorded]:
    """Return the monitors of a run by name, from the last checkpoint that has any."""
    for checkpoint in reversed(checkpoints):
        callbacks = checkpoint.callbacks()
        found = {
            name: Recorded(name, state)
            for key, state in callbacks.items()
            if isinstance(state, Mapping) and state.keys() >= _MARKS
            for name in (_name_in(key),)
        }
        if found:
            return found
    return {}


def _name_in(key: str) -> str:
    """The monitor's name in its state key: ``HessianRankMonitor{'name': 'hessian'}``."""
    match = re.search(r"\{'name': (['\"])(.*)\1\}$", key)
    return match[2] if match else "hessian"
