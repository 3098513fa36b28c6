"""Help: every public name is listed, every example runs, every field and name is explained."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import lightning_hessrank
from lightning_hessrank import HessianRankMonitor, RankBound, RankEstimate
from lightning_hessrank.dashboard import scalars
from tests.dashboard.synthetic import measurement

MODULES = [
    module.name
    for module in pkgutil.walk_packages(lightning_hessrank.__path__, "lightning_hessrank.")
    if not module.name.endswith("__main__")
]
ROOT = Path(__file__).parents[2]
LISTED = re.findall(r"^``([\w.]+)``", lightning_hessrank.__doc__ or "", re.M)


def test_the_page_of_public_names_is_all_there_is() -> None:
    assert {name for name in LISTED if "." not in name} == set(lightning_hessrank.__all__)
    for name in LISTED:
        module, _, leaf = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module or "lightning_hessrank"), leaf))


def imported(source: str) -> set[str]:
    """Names of this package that a program imports, as the page has them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lightning_hessrank"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("lightning_hessrank.") for name in found}


PAGE = {name.removeprefix("lightning_hessrank.") for name in LISTED}


def test_a_typed_program_uses_every_public_name() -> None:
    """``.ci/release`` checks it with ``mypy --strict``, from outside."""
    assert imported((ROOT / "tests/system/typed_program.py").read_text("utf-8")) == PAGE


def test_what_people_are_shown_is_public() -> None:
    programs = [path.read_text("utf-8") for path in (ROOT / "examples").glob("*.py")]
    for name in ("README.md", "CONTRIBUTING.md", "examples/README.md"):
        text = (ROOT / name).read_text("utf-8")
        programs += re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    shown = set().union(*map(imported, programs))
    assert {name.removeprefix("results.") for name in shown} <= PAGE  # results are at the top


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_right(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_there_are_examples() -> None:
    for public in lightning_hessrank.__all__:
        found = getattr(lightning_hessrank, public)
        if not (isinstance(found, type) and issubclass(found, (Warning, Exception))):
            assert ">>> " in (inspect.getdoc(found) or ""), public


@pytest.mark.parametrize("result", [RankEstimate, RankBound])
def test_help_explains_every_field(result: Any) -> None:
    text = inspect.getdoc(result) or ""
    for field in dataclasses.fields(result):
        assert re.search(rf"^ {{4}}{field.name}: ", text, re.M), field.name


def test_help_of_the_monitor_has_every_argument() -> None:
    text = inspect.getdoc(HessianRankMonitor) or ""
    for name in inspect.signature(HessianRankMonitor).parameters:
        assert re.search(rf"^ {{4}}{name}: ", text, re.M), name


def test_help_of_the_monitor_has_every_key_and_logged_name() -> None:
    text = inspect.getdoc(HessianRankMonitor) or ""
    words = set(re.findall(r"``([^`\s]+)``", text))
    for found in (measurement(), measurement(stochastic=True)):
        assert set(found.record()) <= words
        for tag in scalars(found):
            group, _, leaf = tag.partition("/")
            assert f"{group}/" in text, tag
            by_name = ("rank_1e-", "rank/", "rank_over_bound/", "estimate/")
            known = leaf in words or tag in words or leaf.startswith(by_name)
            assert known, tag
