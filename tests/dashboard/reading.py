"""Dashboards written to files, and read back."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lightning_hessrank.dashboard import Dashboard
from lightning_hessrank.dashboard.tab import records
from lightning_hessrank.dashboard.tags import counts_by_label
from lightning_hessrank.dashboard.tensorboard import LAYOUT_TAG
from lightning_hessrank.results import Measurement
from tests.dashboard import synthetic

#: Drawing takes most of the time.
PLAIN = Dashboard(figures=False)


FIGURES = ["overview", "sorted", "spectrum", "layers", "layers_over_time"]


def write(dashboard: Dashboard, loggers: list[Any], runs: Any = None) -> None:
    dashboard.start(loggers)
    for measurement, history in runs if runs is not None else synthetic.run(2):
        dashboard.write(loggers, measurement, history, measurement.step)


def read(folder: str | Path) -> EventAccumulator:
    kinds = ("scalars", "images", "histograms", "tensors")
    return EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0)).Reload()


def layout(events: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    """The page in force: category -> chart -> tags."""
    proto = Layout.FromString(events.Tensors(LAYOUT_TAG)[-1].tensor_proto.string_val[0])
    return {
        category.title: {
            chart.title: list(chart.multiline.tag)
            or [x for s in chart.margin.series for x in (s.value, s.lower, s.upper)]
            for chart in category.chart
        }
        for category in proto.category
    }


def text(events: EventAccumulator, tag: str) -> list[str]:
    return [e.tensor_proto.string_val[0].decode() for e in events.Tensors(f"{tag}/text_summary")]


def tab_texts(measurement: Measurement) -> dict[str, Any]:
    """What the tab needs of a measurement, as it comes back from an event file."""
    found = records.texts_of(measurement, counts_by_label(measurement.total))
    return {kind: json.loads(records.dumps(text)) for kind, text in found.items()}


def by_run(overview: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {run["run"]: run for run in overview["runs"]}


def report_runs(page: str) -> Any:
    """The runs inside of a report."""
    packed = re.search(r'<script id="data"[^>]*>([^<]*)</script>', page)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed.group(1))))["runs"]
