"""Runs are read from event files as they were measured, one by one, whatever else is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_hessrank.dashboard.tab.provider import Reader, reader_of_folder
from tests.dashboard import folders, synthetic
from tests.dashboard.reading import by_run, tab_texts


def test_runs_are_read_as_they_were_measured(mixed: Reader) -> None:
    overview = mixed.overview()
    runs = by_run(overview)
    assert set(runs) == {"relu", "linear", "large", "old", folders.HOSTILE.replace("/", "")}
    assert overview["others"] == ["without the callback"]
    assert overview["broken"] == []
    for name, measured in (
        ("relu", folders.rising()),
        ("linear", folders.falling()),
        ("large", folders.estimated()),
    ):
        expected = [tab_texts(one)["record"] for one in measured]
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
    expected = [tab_texts(one) for one in folders.rising()]
    assert found["details"] == [text["detail"] for text in expected]
    assert [name for name, *_ in found["about"]["layers"]] == ["net.0", "net.2", "net.4", "net.6"]
    assert mixed.details("large", "hessian")["details"] == []
    assert mixed.details("../relu", "nobody")["details"] == []


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
