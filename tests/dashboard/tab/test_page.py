"""The page to hand on holds all runs, and nothing from outside."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

from lightning_hessrank.dashboard.tab import page
from lightning_hessrank.dashboard.tab.provider import reader_of_folder
from tests.dashboard import folders
from tests.dashboard.reading import report_runs


def test_a_report_holds_everything_and_names_nothing_outside(folder: Path) -> None:
    text = page.report_of(reader_of_folder(folder), title="<b>mine</b>")
    assert len(text.encode()) < 6_000_000
    assert "<title>&lt;b&gt;mine&lt;/b&gt;</title>" in text
    assert folders.HOSTILE not in text
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", text)
    assert text.count("<script") == text.count("</script>") == 4
    read = reader_of_folder(folder)
    assert report_runs(text) == json.loads(json.dumps(read.runs_with_details()))


def test_a_report_can_load_the_drawing_library_from_elsewhere(folder: Path) -> None:
    address = 'https://cdn.example/plotly.js?a="b"'
    text = page.report_of(reader_of_folder(folder), plotly=address)
    assert '<script src="https://cdn.example/plotly.js?a=&quot;b&quot;"></script>' in text
    assert len(text.encode()) < 300_000


def test_many_long_runs_keep_every_number_and_fewer_spectra() -> None:
    detail = {"spectrum": {"values": [0.1] * 150}, "layers": [3] * 50}
    records = [{"step": i, "rank": i} for i in range(200)]
    run = {"run": "a", "records": records, "details": [{"step": i, **detail} for i in range(200)]}
    text = page.report([run] * 20, plotly="elsewhere")
    assert len(text.encode()) < 1_000_000
    for found in report_runs(text):
        assert found["records"] == records
        steps = [x["step"] for x in found["details"]]
        assert len(steps) == 12
        assert (steps[0], steps[-1]) == (0, 199)
        assert max(b - a for a, b in pairwise(steps)) <= 19
