"""The tab's answers to a browser: what is served, under which type, and nothing else."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins import base_plugin
from werkzeug.test import Client, TestResponse

from lightning_hessrank.dashboard.tab.assets import SCRIPTS
from lightning_hessrank.dashboard.tab.plugin import HessianLoader, HessianPlugin


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


def test_the_tab_loads_without_torch_and_lightning() -> None:
    code = (
        "import sys; import lightning_hessrank.dashboard.tab.plugin;"
        "print([m for m in ('torch', 'pytorch_lightning', 'lightning', 'matplotlib', 'plotly')"
        " if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
