"""What the numbers of a run depend on: settled once, and the same after a resume."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_hessrank.monitor.reference import ReferenceData
from lightning_hessrank.monitor.series import Series
from lightning_hessrank.processes import Processes
from tests.dashboard import synthetic

MEANING = {"method": "dense", "rtol": None, "module_mode": "eval"}


def series() -> Series:
    one = Series(dict(MEANING))
    one.reference = ReferenceData.gather([(torch.ones(3, 2), torch.zeros(3))], Processes())
    for measurement, _ in synthetic.run(2):
        one.add(measurement)
    return one


def test_a_resumed_series_goes_on_where_it_was() -> None:
    one, again = series(), Series({**MEANING, "method": "auto"})
    one.skipped = 4
    assert again.load_state_dict(one.state_dict()) == []  # auto had become dense
    again.restore_reference(Processes())
    assert again.meaning == MEANING
    assert again.history == one.history
    assert again.about == one.about
    assert again.details == one.details
    assert [x["step"] for x in again.details] == [x["step"] for x in one.history]
    assert (again.skipped, again.last_step) == (4, one.history[-1]["step"])
    assert not again.is_on_other_data()


def test_what_would_change_the_meaning_is_reported_and_does_not() -> None:
    again = Series({**MEANING, "module_mode": "train", "rtol": 1e-3})
    changed = again.load_state_dict(series().state_dict())
    assert changed == ["rtol=None instead of 0.001", "module_mode='eval' instead of 'train'"]
    assert again.meaning == MEANING


def test_other_reference_data_are_noticed() -> None:
    again = Series(dict(MEANING))
    again.load_state_dict(series().state_dict())
    assert not again.is_on_other_data()  # none yet
    again.reference = ReferenceData.gather([(torch.ones(3, 2), torch.ones(3))], Processes())
    assert again.is_on_other_data()


def test_a_state_can_be_loaded_with_weights_only(tmp_path: Path) -> None:
    torch.save(series().state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["history"] == series().history
