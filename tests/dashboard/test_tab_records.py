"""What is written for the tab: small at any size, plain JSON, and true to the measurement."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_hessrank.dashboard.tab import records, scalars, series
from lightning_hessrank.dashboard.tab.provider import Reader, reader_of_folder
from lightning_hessrank.dashboard.tags import counts_by_label
from lightning_hessrank.results import LayerRank, Measurement
from tests.dashboard import folders, synthetic


def texts(measurement: Measurement) -> dict[str, Any]:
    """As they come back from an event file."""
    found = records.texts_of(measurement, counts_by_label(measurement.total))
    return {kind: json.loads(records.dumps(text)) for kind, text in found.items()}


def test_a_record_says_what_the_measurement_says() -> None:
    one = replace(synthetic.measurement(30), num_samples=200, module_mode="eval")
    record, expected = texts(one)["record"], one.record()
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
    record = texts(synthetic.failed(7))["record"]
    assert record["step"] == 7
    assert "rank" not in record
    assert "loss" not in record
    full = synthetic.measurement(total=synthetic.dense(30, 30))
    assert texts(full)["record"]["gap"] == "inf"
    assert records.DETAIL not in texts(synthetic.failed())


def test_counts_of_history_get_the_labels_that_scalars_have() -> None:
    for total in (synthetic.dense(), synthetic.sketch(), synthetic.lanczos()):
        one = synthetic.measurement(total=total)
        assert records.compact(one.record())["counts"] == {
            k: pytest.approx(v) for k, v in counts_by_label(total).items()
        }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[1]",
        "null",
        '{"rank": 3}',
        '{"step": "now"}',
        '{"step": NaN}',
        b"\xff\xfe",
        None,
        3,
    ],
)
def test_what_is_no_record_is_left_out(text: object) -> None:
    assert series.parse_record(text) is None
    assert series.parse_detail(text) is None


def test_what_is_no_number_is_missing() -> None:
    text = '{"step": 1, "rank": "<b>", "bound": true, "counts": {"1e-1": [], "1e-2": 4}, "x": "y"}'
    assert series.parse_record(text) == {"step": 1, "counts": {"1e-2": 4}, "x": "y"}
    lists = '"positive": [1], "negative": [], "at": [1], "values": [0.5]'
    for spectrum in ('"bins": 0, "positive": ["<b>"]', f'"bins": 1e9, {lists}', '"bins": 0'):
        broken = f'{{"step": 1, "spectrum": {{{spectrum}}}, "layers": 3}}'
        assert series.parse_detail(broken) == {"step": 1}
    whole = f'{{"step": 1, "spectrum": {{"bins": 0, {lists}}}, "layers": [3]}}'
    assert series.parse_detail(whole) == json.loads(whole)


def test_numbers_that_a_browser_cannot_read_become_null() -> None:
    foreign = series.parse_record('{"step": 1, "mine": [NaN, 1e999], "counts": {"1e-1": 1e999}}')
    assert json.loads(records.dumps(foreign)) == {"step": 1, "mine": [None, None], "counts": {}}


def test_of_two_at_a_step_the_later_counts() -> None:
    found = series.by_step([{"step": 5, "a": 1}, None, {"step": 0}, {"step": 5, "a": 2}])
    assert found == [{"step": 0}, {"step": 5, "a": 2}]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("mixed")
    folders.mixed(folder)
    broken = folder / "broken"
    broken.mkdir()
    (broken / "events.out.tfevents.1.host").write_bytes(b"no event file at all" * 9)
    return reader_of_folder(folder)


def by_name(overview: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {run["run"]: run for run in overview["runs"]}


def test_runs_are_read_as_they_were_measured(mixed: Reader) -> None:
    overview = mixed.overview()
    runs = by_name(overview)
    assert set(runs) == {"relu", "linear", "large", "old", folders.HOSTILE.replace("/", "")}
    assert overview["others"] == ["without the callback"]
    assert overview["broken"] == []
    for name, measured in (
        ("relu", folders.rising()),
        ("linear", folders.falling()),
        ("large", folders.estimated()),
    ):
        expected = [texts(one)["record"] for one in measured]
        assert runs[name]["records"] == expected
        assert not runs[name]["old"]
    last = list(folders.rising())[-1]
    assert runs["relu"]["metrics"] == {
        "train_loss": pytest.approx(last.loss),
        "val_acc": pytest.approx(1 - last.loss / 3),
    }
    assert runs["relu"]["about"]["bound"]["reason"] == synthetic.bound().reason
    assert "torch" in runs["relu"]["about"]["versions"]


def test_details_are_read_one_run_at_a_time(mixed: Reader) -> None:
    found = mixed.details("relu", "hessian")
    expected = [texts(one) for one in folders.rising()]
    assert found["details"] == [text["detail"] for text in expected]
    assert [name for name, *_ in found["about"]["layers"]] == ["net.0", "net.2", "net.4", "net.6"]
    assert mixed.details("large", "hessian")["details"] == []
    assert mixed.details("../relu", "nobody")["details"] == []


def test_a_run_of_the_first_version_is_read_from_its_scalars(mixed: Reader) -> None:
    old = by_name(mixed.overview())["old"]
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


def test_two_monitors_and_a_prefix(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="run", version="", prefix="mine")
    for name in ("hessian", "coarse"):
        for one in folders.falling(2):
            replace(folders.TAB, name=name).write([logger], one, [one.record()], one.step)
    logger.finalize("success")
    overview = reader_of_folder(tmp_path).overview()
    assert [run["name"] for run in overview["runs"]] == ["mine-coarse", "mine-hessian"]
    assert all(run["metrics"] == {} for run in overview["runs"])


def test_a_resumed_run_is_one(tmp_path: Path) -> None:
    measured = list(folders.falling(6))
    for part in (measured[:4], measured[3:]):  # step 45 is measured again
        folders.write(tmp_path, "run", iter(part)).finalize("success")
    (run,) = reader_of_folder(tmp_path).overview()["runs"]
    assert [r["step"] for r in run["records"]] == [m.step for m in measured]


def test_a_run_of_which_nothing_can_be_parsed_takes_no_other_with_it(tmp_path: Path) -> None:
    folders.write(tmp_path, "good", folders.falling(2)).finalize("success")
    logger = folders.write(tmp_path, "foreign", folders.falling(1))
    from lightning_hessrank.dashboard.tensorboard import TensorBoardPage

    page = TensorBoardPage.of(logger)
    assert page is not None
    page.add_record("hessian-tab/record", "{no json", 7)
    page.add_record("other-tab/record", "[]", 7)
    page.add_record("hessian-tab/about", "[]", 7)
    logger.finalize("success")
    overview = reader_of_folder(tmp_path).overview()
    read = {(run["run"], run["name"]): len(run["records"]) for run in overview["runs"]}
    assert read == {("good", "hessian"): 2, ("foreign", "hessian"): 1, ("foreign", "other"): 0}


def test_history_and_event_file_make_the_same_run(tmp_path: Path) -> None:
    measured = list(folders.falling(3))
    folders.write(tmp_path, "run", iter(measured)).finalize("success")
    (read,) = reader_of_folder(tmp_path).overview()["runs"]
    kept = series.run_of_history([m.record() for m in measured], run="run", name="hessian")
    assert kept["records"] == read["records"]
    assert set(kept["about"]) == {"versions", "layers"}


def test_the_tab_loads_without_torch_and_lightning() -> None:
    code = (
        "import sys; import lightning_hessrank.dashboard.tab.plugin;"
        "print([m for m in ('torch', 'pytorch_lightning', 'lightning', 'matplotlib', 'plotly')"
        " if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_public_names_are_all_there() -> None:
    import lightning_hessrank
    from lightning_hessrank import dashboard

    for module in (lightning_hessrank, dashboard):
        assert all(getattr(module, name) is not None for name in module.__all__)
        assert set(module.__all__) <= set(dir(module))
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            module.nothing  # noqa: B018


def test_numbers() -> None:
    assert not any(map(series.is_number, (True, None, "1", math.nan, math.inf)))
    assert all(map(series.is_number, (0, 1.5, -3)))
