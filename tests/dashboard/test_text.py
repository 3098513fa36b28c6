"""Words beside the numbers: every tag that the guide explains exists, every bound has its table."""

from __future__ import annotations

import re
from dataclasses import replace

from lightning_hessrank.dashboard import scalars
from lightning_hessrank.dashboard.text import bound_table, guide
from tests.dashboard import synthetic


def test_the_guide_explains_tags_of_this_monitor() -> None:
    text = guide("mine")
    assert "{" not in text
    explained = {x for x in re.findall(r"`(mine[\w/-]+)`", text) if "spectrum/decades" not in x}
    logged = {
        tag.replace("hessian", "mine", 1)
        for measurement, _ in synthetic.run(1)
        for tag in scalars(measurement)
    }
    exact = {x for x in explained if "estimate" not in x and "tolerance" not in x}
    assert exact <= logged | {"mine/batch_bound"}


def test_a_bound_is_a_table_with_its_validity() -> None:
    bound = synthetic.bound(5, 12)
    for is_theorem in (True, False):
        text = bound_table(replace(bound, is_theorem=is_theorem))
        assert ("theorem" in text.splitlines()[0]) is is_theorem
        assert bound.reason in text
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        assert len(rows) == len(bound.layers)
