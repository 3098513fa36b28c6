"""The measurements of one run: what they mean is settled once, and a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_hessrank.budget import Plan
from lightning_hessrank.dashboard.tab.records import ABOUT, DETAIL, texts_of
from lightning_hessrank.monitor.clock import Clock
from lightning_hessrank.monitor.form import Form
from lightning_hessrank.monitor.reference import ReferenceData
from lightning_hessrank.processes import Processes
from lightning_hessrank.results import Measurement, RankBound


class Series:
    """History of a run, with all that its numbers depend on.

    Args:
        meaning: arguments that change what a rank means; those of the first run hold on resume.
        besides: further arguments, which a checkpoint keeps for whoever measures the run again.
    """

    def __init__(self, meaning: dict[str, Any], besides: Mapping[str, Any] | None = None) -> None:
        self.meaning = meaning
        self._besides = dict(besides or {})
        self._asked = dict(meaning)
        self.history: list[dict[str, Any]] = []
        self.details: list[dict[str, Any]] = []
        """Thinned spectra and layers, for the report: a few kilobytes each."""
        self.about: dict[str, Any] = {}
        """What the report says of all measurements: versions, bounds, layers."""
        self.reference: ReferenceData | None = None
        self.plan: Plan | None = None
        """What the time budget buys, decided at the first measurement."""
        self.bound: RankBound | None = None
        self.bound_sought = False
        self.skipped = 0
        """Measurements that the time budget has left out."""
        self.last_step: int | None = None
        """At which a measurement was last taken, or tried in vain."""
        self.last_weights: str | None = None
        """Fingerprint of the weights then, in this process."""
        self.form: Form | None = None
        """Of the function that was last measured."""
        self.verified = False
        """Whether products have been compared with finite differences, in this process."""
        self.difference_rtol: float | None = None
        """Tolerance of the ranks where products are differences; their error decides, once."""
        self.clock = Clock()
        self._saved_reference: dict[str, Any] = {}

    def forget_function(self) -> None:
        """Settle bound and method anew: another function is measured from here on."""
        self.bound, self.bound_sought, self.verified = None, False, False
        self.meaning["method"], self.plan = self._asked["method"], None
        self.difference_rtol = None

    def record(self, measurement: Measurement) -> dict[str, Any]:
        """Return what the history is to hold of a measurement, with the data behind it."""
        assert self.reference is not None
        return {**measurement.record(), "reference": self.reference.fingerprint[:16]}

    def details_with(self, measurement: Measurement) -> list[dict[str, Any]]:
        """Return the details so far and those of a measurement, where it has any."""
        new = texts_of(measurement).get(DETAIL)
        return self.details if new is None else [*self.details, new]

    def add(self, measurement: Measurement) -> None:
        """Remember a measurement."""
        self.history.append(self.record(measurement))
        self.details = self.details_with(measurement)
        self.about = texts_of(measurement)[ABOUT]

    def restore_reference(self, processes: Processes) -> None:
        """Take up the reference data that a checkpoint kept, if it did."""
        if self.reference is None:
            self.reference = ReferenceData.load(self._saved_reference, processes)

    def is_on_other_data(self) -> bool:
        """Whether the reference data are not those that the resumed run was measured on."""
        saved = self._saved_reference.get("fingerprint")
        return (
            saved is not None
            and self.reference is not None
            and (self.reference.fingerprint != saved)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return builtin types and tensors only, as a weights-only load accepts them."""
        reference = self._saved_reference
        if self.reference is not None:
            reference = self.reference.state_dict()
        return {
            "meaning": dict(self.meaning),
            "asked": dict(self._besides),
            "history": [dict(record) for record in self.history],
            "details": list(self.details),
            "about": dict(self.about),
            "reference": reference,
            "bound": None if self.bound is None else self.bound.to_dict(),
            "bound_sought": self.bound_sought,
            "plan": None if self.plan is None else self.plan.to_dict(),
            "form": None if self.form is None else self.form._asdict(),
            "skipped": self.skipped,
            "difference_rtol": self.difference_rtol,
            "clock": self.clock.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Go on where a checkpoint left off; return which arguments would have changed meaning."""
        changed = [
            f"{name}={value!r} instead of {self.meaning[name]!r}"
            for name, value in state["meaning"].items()
            if self.meaning.get(name) not in ("auto", value)
        ]
        self.meaning = {**self.meaning, **state["meaning"]}
        self.history[:] = [dict(record) for record in state["history"]]
        self.details = list(state.get("details", []))  # absent in checkpoints of version 0.1.0
        self.about = dict(state.get("about", {}))
        self.last_step = self.history[-1]["step"] if self.history else None
        self.reference = None
        self._saved_reference = state["reference"]
        bound = state["bound"]
        self.bound = None if bound is None else RankBound.from_dict(bound)
        self.bound_sought = state["bound_sought"]
        plan = state.get("plan")  # of version 0.1 there is none
        self.plan = None if plan is None else Plan.from_dict(plan)
        self.form = Form.from_state(state.get("form"))
        self.skipped = state["skipped"]
        self.difference_rtol = state.get("difference_rtol")
        self.clock.load_state_dict(state["clock"])
        return changed

    def begin_like(self, state: Mapping[str, Any], *, same_data: bool) -> None:
        """Begin anew, to measure what another run did.

        Args:
            state: of the other run's series.
            same_data: take up its reference data, and with them its bound.
        """
        fresh: dict[str, Any] = {
            "meaning": self.meaning,
            "history": [],
            "details": [],
            "about": {},
            "skipped": 0,
            "clock": Clock().state_dict(),
        }
        if not same_data:
            fresh |= {"reference": {}, "bound": None, "bound_sought": False, "form": None}
        if not same_data or self.meaning != state["meaning"]:
            fresh["plan"] = None
        self.load_state_dict({**state, **fresh})
