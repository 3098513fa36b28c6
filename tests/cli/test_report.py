"""``hessrank report``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard import folders
from tests.dashboard.reading import report_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("mixed")
    folders.mixed(found)
    return found


def test_the_command(hessrank: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    result = hessrank("report", str(folder), "-o", str(target), "--plotly", "p.js")
    assert result.exit_code == 0, result.output
    assert f"{target}: 5 runs, 45 measurements" in result.output
    assert len(report_runs(target.read_text())) == 5
    several = hessrank("report", *(str(folder / x) for x in ("relu", "linear")), "-o", str(target))
    assert several.exit_code == 0
    names = [run["run"] for run in report_runs(target.read_text())]
    assert names == [str(folder / "relu"), str(folder / "linear")]
    one = hessrank("report", str(folder / "relu"), "-o", str(target))
    assert "1 run, 12 measurements" in one.output
    assert [run["run"] for run in report_runs(target.read_text())] == ["relu"]


def test_the_command_without_runs(hessrank: Callable[..., Any], tmp_path: Path) -> None:
    result = hessrank("report", str(tmp_path))
    assert result.exit_code == 1
    assert f"no run with HessianRankMonitor in {tmp_path}; pass the folder that" in result.output


def test_a_page_that_cannot_be_written_is_one_line(
    hessrank: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "nowhere" / "page.html"
    result = hessrank("report", str(folder / "relu"), "-o", str(target))
    assert result.exit_code == 1
    assert result.stderr == f"Error: cannot write {target}: No such file or directory\n"
