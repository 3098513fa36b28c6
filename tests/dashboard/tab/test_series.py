"""How a run is put together from what was written of it, whatever that is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lightning_hessrank.dashboard.tab import records, series
from lightning_hessrank.dashboard.tab.provider import reader_of_folder
from tests.dashboard import folders


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[1]",
        "null",
        '{"rank": 3}',
        '{"step": "now"}',
        '{"step": NaN}',
        b"\xff\xfe",
        None,
        3,
    ],
)
def test_what_is_no_record_is_left_out(text: object) -> None:
    assert series.parse_record(text) is None
    assert series.parse_detail(text) is None


def test_what_is_no_number_is_missing() -> None:
    text = '{"step": 1, "rank": "<b>", "bound": true, "counts": {"1e-1": [], "1e-2": 4}, "x": "y"}'
    assert series.parse_record(text) == {"step": 1, "counts": {"1e-2": 4}, "x": "y"}
    lists = '"positive": [1], "negative": [], "at": [1], "values": [0.5]'
    for spectrum in ('"bins": 0, "positive": ["<b>"]', f'"bins": 1e9, {lists}', '"bins": 0'):
        broken = f'{{"step": 1, "spectrum": {{{spectrum}}}, "layers": 3}}'
        assert series.parse_detail(broken) == {"step": 1}
    whole = f'{{"step": 1, "spectrum": {{"bins": 0, {lists}}}, "layers": [3]}}'
    assert series.parse_detail(whole) == json.loads(whole)


def test_numbers_that_a_browser_cannot_read_become_null() -> None:
    foreign = series.parse_record('{"step": 1, "mine": [NaN, 1e999], "counts": {"1e-1": 1e999}}')
    assert json.loads(records.dumps(foreign)) == {"step": 1, "mine": [None, None], "counts": {}}


def test_of_two_at_a_step_the_later_counts() -> None:
    found = series.by_step([{"step": 5, "a": 1}, None, {"step": 0}, {"step": 5, "a": 2}])
    assert found == [{"step": 0}, {"step": 5, "a": 2}]


def test_history_and_event_file_make_the_same_run(tmp_path: Path) -> None:
    measured = list(folders.falling(3))
    folders.write(tmp_path, "run", iter(measured)).finalize("success")
    (read,) = reader_of_folder(tmp_path).overview()["runs"]
    kept = series.run_of_history([m.record() for m in measured], run="run", name="hessian")
    assert kept["records"] == read["records"]
    assert set(kept["about"]) == {"versions", "layers"}


def test_numbers() -> None:
    assert not any(map(series.is_number, (True, None, "1", math.nan, math.inf)))
    assert all(map(series.is_number, (0, 1.5, -3)))
