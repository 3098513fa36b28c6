"""The tab's answers to a browser: what is served, under which type, and nothing else."""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins import base_plugin
from typer.testing import CliRunner
from werkzeug.test import Client, TestResponse

from lightning_hessrank.cli import app
from lightning_hessrank.dashboard.tab import page
from lightning_hessrank.dashboard.tab.assets import SCRIPTS
from lightning_hessrank.dashboard.tab.plugin import HessianLoader, HessianPlugin
from lightning_hessrank.dashboard.tab.provider import reader_of_folder
from tests.dashboard import folders


class Served:
    """The plugin on a folder, without TensorBoard around it."""

    def __init__(self, folder: Path) -> None:
        multiplexer = EventMultiplexer()
        multiplexer.AddRunsFromDirectory(str(folder))
        multiplexer.Reload()
        provider = MultiplexerDataProvider(multiplexer, str(folder))
        context = base_plugin.TBContext(data_provider=provider)
        plugin = HessianLoader().load(context)
        assert isinstance(plugin, HessianPlugin)
        self.plugin, self.apps = plugin, plugin.get_plugin_apps()

    def get(self, route: str, **query: str) -> TestResponse:
        return Client(self.apps[route]).get(route, query_string=query)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("mixed")
    folders.mixed(found)
    return found


@pytest.fixture(scope="module")
def served(folder: Path) -> Served:
    return Served(folder)


def test_every_answer_has_a_type_and_is_not_to_be_guessed_at(served: Served) -> None:
    types = {
        ".js": "application/javascript; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "tml": "text/html; charset=utf-8",
    }
    for route in served.apps:
        answer = served.get(route)
        assert answer.status_code == 200
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Type"] == types.get(route[-3:], "application/json")
        assert len(answer.data) > 2


def test_the_page_can_load_all_that_it_names(served: Served) -> None:
    assert served.get("/scripts").json == list(SCRIPTS)
    metadata = served.plugin.frontend_metadata()
    assert metadata.tab_name == "Hessian"
    module = served.get(str(metadata.es_module_path)).text
    assert "export const render" in module
    named = set(re.findall(r'"\./([\w.]+)"', module)) - {"scripts", "runs"}
    assert {f"/{name}" for name in (*named, *SCRIPTS)} < set(served.apps)
    assert served.plugin.is_active()


def test_data_are_json_that_a_browser_can_parse(served: Served) -> None:
    for route, query in (("/runs", {}), ("/details", {"run": "relu", "name": "hessian"})):
        text = served.get(route, **query).text
        assert "NaN" not in text
        assert "Infinity" not in text
        assert json.loads(text)


@pytest.mark.parametrize("run", ["", "nobody", "../../etc/passwd", "relu/../relu", "\x00"])
def test_a_run_that_is_not_there_has_nothing(served: Served, run: str) -> None:
    answer = served.get("/details", run=run, name="hessian")
    assert answer.status_code == 200
    assert answer.json == {"about": {"layers": []}, "details": []}


def test_what_goes_wrong_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(folder)

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("the disk is gone")

    monkeypatch.setattr(served.plugin._provider, "list_tensors", fail)
    answer = served.get("/runs")
    assert (answer.status_code, answer.json) == (500, {"error": "OSError: the disk is gone"})
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_run_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(folder)
    read = served.plugin._provider.read_tensors

    def fail(*args: Any, run_tag_filter: Any, **kwargs: Any) -> Any:
        if "relu" in run_tag_filter.runs:
            raise ValueError("cut short")
        return read(*args, run_tag_filter=run_tag_filter, **kwargs)

    monkeypatch.setattr(served.plugin._provider, "read_tensors", fail)
    found = served.get("/runs").json
    assert found is not None
    assert found["broken"] == [{"run": "relu", "reason": "ValueError: cut short"}]
    assert {run["run"] for run in found["runs"]} >= {"linear", "large", "old"}


def test_an_empty_folder(tmp_path: Path) -> None:
    assert Served(tmp_path).get("/runs").json == {"runs": [], "others": [], "broken": []}


def test_tensorboard_keeps_all_measurements_unless_told_otherwise() -> None:
    for given, kept in (({}, 1000), ({"hessian": 7, "images": 3}, 7)):
        flags = argparse.Namespace(samples_per_plugin=given)
        HessianLoader().fix_flags(flags)
        assert flags.samples_per_plugin == {**given, "hessian": kept}


# -- the page to hand on -------------------------------------------------------------------------


def content(text: str) -> Any:
    """The data inside of a page."""
    packed = re.search(r'<script id="data"[^>]*>([^<]*)</script>', text)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed.group(1))))


def test_a_report_holds_everything_and_names_nothing_outside(folder: Path) -> None:
    text = page.report_of(reader_of_folder(folder), title="<b>mine</b>")
    assert len(text.encode()) < 6_000_000
    assert "<title>&lt;b&gt;mine&lt;/b&gt;</title>" in text
    assert folders.HOSTILE not in text
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", text)
    assert text.count("<script") == text.count("</script>") == 4
    found = content(text)
    read = reader_of_folder(folder)
    assert found["runs"] == json.loads(json.dumps(read.runs_with_details()))


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
    for found in content(text)["runs"]:
        assert found["records"] == records
        steps = [x["step"] for x in found["details"]]
        assert len(steps) == 12
        assert (steps[0], steps[-1]) == (0, 199)
        assert max(b - a for a, b in pairwise(steps)) <= 19


def test_the_command(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    command = ["report", str(folder), "-o", str(target), "--plotly", "p.js"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert f"{target}: 5 runs, 45 measurements" in result.output
    assert len(content(target.read_text())["runs"]) == 5
    several = ["report", str(folder / "relu"), str(folder / "linear"), "-o", str(target)]
    assert CliRunner().invoke(app, several).exit_code == 0
    names = [run["run"] for run in content(target.read_text())["runs"]]
    assert names == [str(folder / "relu"), str(folder / "linear")]
    one = CliRunner().invoke(app, ["report", str(folder / "relu"), "-o", str(target)])
    assert "1 run, 12 measurements" in one.output
    assert [run["run"] for run in content(target.read_text())["runs"]] == ["relu"]


def test_the_command_without_runs(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 1
    assert f"no run with HessianRankMonitor in {tmp_path}; pass the folder that" in result.output
