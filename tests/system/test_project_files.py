"""Files that other programs read: CITATION.cff and .pre-commit-config.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import lightning_hessrank

ROOT = Path(__file__).parents[2]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def test_the_citation_is_of_this_version_and_has_what_the_format_requires() -> None:
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == lightning_hessrank.__version__
    assert citation["type"] == "software"
    assert {"message", "title", "authors", "license"} <= set(citation)
    for work in (citation, *citation["references"]):
        assert {"type", "title", "authors"} <= set(work)
        assert all({"name"} <= set(x) or {"family-names"} <= set(x) for x in work["authors"])


def test_the_papers_are_those_that_the_sources_name() -> None:
    cited = {
        identifier["value"].removeprefix("arXiv:")
        for work in read("CITATION.cff")["references"]
        for identifier in work["identifiers"]
    }
    named = {
        number
        for path in (ROOT / "lightning_hessrank").rglob("*.py")
        for number in re.findall(r"arXiv[ :](\d{4}\.\d{5})", path.read_text("utf-8"))
    }
    assert cited <= named


def test_commits_are_checked_as_ci_checks_them() -> None:
    repos = {
        repo["repo"].rpartition("/")[2]: repo for repo in read(".pre-commit-config.yaml")["repos"]
    }
    constraints = (ROOT / ".ci" / "constraints.txt").read_text("utf-8")
    (version,) = re.findall(r"^ruff==(.*)$", constraints, re.M)
    ruff = repos["ruff-pre-commit"]
    assert ruff["rev"] == f"v{version}"
    assert {"ruff-check", "ruff-format"} <= {hook["id"] for hook in ruff["hooks"]}
