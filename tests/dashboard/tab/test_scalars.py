"""Runs of version 0.1.0, which wrote scalars only."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_hessrank.dashboard.tab import scalars
from lightning_hessrank.dashboard.tab.provider import Reader, reader_of_folder
from lightning_hessrank.dashboard.tags import counts_by_label
from tests.dashboard import folders
from tests.dashboard.reading import by_run


def test_a_run_of_the_first_version_is_read_from_its_scalars(mixed: Reader) -> None:
    old = by_run(mixed.overview())["old"]
    assert old["old"]
    for record, one in zip(old["records"], folders.rising(6), strict=True):
        assert record["step"] == one.step
        for entry in ("rank", "rank_outer", "bound", "batch_bound", "num_parameters"):
            assert record[entry] == one.record()[entry]
        assert record["counts"] == counts_by_label(one.total)
        assert record["tolerance"] == pytest.approx(one.total.tolerance, rel=1e-5)
        assert record["bound_is_theorem"] is False  # from what was written of the bound
        assert record["method"] == "exact"  # dense or sketch: it was not written
    found = mixed.details("old", "hessian")
    first = next(folders.rising(6))
    assert {name: bound for name, _, bound in found["about"]["layers"]} == {
        name: layer.bound for name, layer in first.layers.items()
    }
    names = [name for name, *_ in found["about"]["layers"]]
    ranks = dict(zip(names, found["details"][0]["layers"], strict=True))
    assert ranks == {name: layer.rank for name, layer in first.layers.items()}


def test_an_old_estimate_is_told_from_an_exact_count(tmp_path: Path) -> None:
    folders.write(tmp_path, "run", folders.estimated(2), folders.OLD).finalize("success")
    (run,) = reader_of_folder(tmp_path).overview()["runs"]
    assert [r["method"] for r in run["records"]] == ["lanczos", "lanczos"]
    assert run["records"][0]["rank_lower"] < run["records"][0]["rank"]


def test_monitors_are_found_by_two_tags_that_both_are_theirs() -> None:
    tags = ["a-bound/parameters", "a-time/overhead", "b-bound/parameters", "-time/overhead"]
    assert scalars.monitors(tags) == ["a"]
