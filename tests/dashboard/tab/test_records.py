"""What is written for the tab: small at any size, plain JSON, and true to the measurement."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from lightning_hessrank.dashboard.tab import records, series
from lightning_hessrank.dashboard.tags import counts_by_label
from lightning_hessrank.results import LayerRank
from tests.dashboard import synthetic
from tests.dashboard.reading import tab_texts


def test_a_record_says_what_the_measurement_says() -> None:
    one = replace(synthetic.measurement(30), num_samples=200, module_mode="eval")
    record, expected = tab_texts(one)["record"], one.record()
    same = ("step", "epoch", "rank", "bound", "batch_bound", "method", "num_samples", "module_mode")
    assert {k: record[k] for k in same} == {k: expected[k] for k in same}
    assert record["counts"] == counts_by_label(one.total)
    assert record["rtol"] == pytest.approx(expected["rtol"], rel=1e-6)
    assert record["gap"] == pytest.approx(one.total.gap, rel=1e-6)
    assert record["bound_is_theorem"] is False
    assert "layers" not in record
    assert series.parse_record(records.dumps(record)) == record


@pytest.mark.parametrize("p", [1210, 10_000_000])
def test_a_measurement_takes_less_than_ten_kilobytes(p: int) -> None:
    total = synthetic.dense(p, 747) if p < 10_000 else synthetic.huge()
    layers = {
        f"encoder.blocks.{i}.attention.query": LayerRank(10**6 + i, 10**7) for i in range(500)
    }
    found = records.texts_of(replace(synthetic.measurement(total=total), layers=layers))
    every_time = [records.dumps(found[kind]) for kind in (records.RECORD, records.DETAIL)]
    assert sum(len(text.encode()) for text in every_time) < 10_000


@pytest.mark.parametrize(
    "eigenvalues",
    [
        synthetic.spectrum(1210, 747),
        synthetic.spectrum(500, 500, decades=25),
        synthetic.spectrum(40, 0, noise=0.0),
        torch.tensor([-3.0], dtype=torch.float64),
        1e-200 * synthetic.spectrum(30, 10),
        1e200 * synthetic.spectrum(30, 10),
    ],
    ids=["usual", "wide", "zero", "one", "tiny", "large"],
)
def test_a_sketch_counts_every_eigenvalue_once(eigenvalues: torch.Tensor) -> None:
    values = eigenvalues.numpy()
    tolerance = 1e-10 * float(np.abs(values).max())
    sketch = records.sketch(values, tolerance)
    counted = sum(sketch["positive"]) + sum(sketch["negative"]) + sketch["below"]
    assert counted == len(values)
    for sign, name in ((1, "positive"), (-1, "negative")):
        edges = 10.0 ** ((sketch["bins"] + np.arange(len(sketch[name]) + 1)) / 4)
        if len(edges) > 1:
            size = np.abs(values[np.sign(values) == sign])
            inside = np.array([((size >= a) & (size < b)).sum() for a, b in pairwise(edges)])
            # An eigenvalue at an edge may fall to either side of it, by rounding.
            assert np.abs(np.cumsum(inside) - np.cumsum(sketch[name])).max() <= 2
    ordered = values[np.argsort(-np.abs(values), kind="stable")]
    at = np.array(sketch["at"])
    assert at[0] == 1
    assert at[-1] == len(values)
    np.testing.assert_allclose(sketch["values"], ordered[at - 1], rtol=1e-3)


def test_a_sketch_is_not_thinned_at_the_cut() -> None:
    total = synthetic.huge()
    assert total.eigenvalues is not None
    sketch = records.sketch(total.eigenvalues.numpy(), total.tolerance)
    assert {1, 2, 3, 20_000, 20_001, 10_000_000} <= set(sketch["at"])
    assert len(sketch["at"]) < 200


def test_what_is_not_finite_is_missing_and_full_rank_has_no_gap() -> None:
    record = tab_texts(synthetic.failed(7))["record"]
    assert record["step"] == 7
    assert "rank" not in record
    assert "loss" not in record
    full = synthetic.measurement(total=synthetic.dense(30, 30))
    assert tab_texts(full)["record"]["gap"] == "inf"
    assert records.DETAIL not in tab_texts(synthetic.failed())


def test_counts_of_history_get_the_labels_that_scalars_have() -> None:
    for total in (synthetic.dense(), synthetic.sketch(), synthetic.lanczos()):
        one = synthetic.measurement(total=total)
        assert records.compact(one.record())["counts"] == {
            k: pytest.approx(v) for k, v in counts_by_label(total).items()
        }
