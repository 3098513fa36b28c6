"""What a run's own monitor left in its checkpoints, and that its ranks are met to the digit."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.cli.checkpoints import find_checkpoints
from lightning_hessrank.cli.recorded import recorded_monitors

COMMAND = ("measure", "train:Net", "--checkpoints", "run")


def train(here: Path, monkeypatch: pytest.MonkeyPatch, *monitors: HessianRankMonitor) -> None:
    """Train with monitors; keep every epoch's checkpoint."""
    monkeypatch.syspath_prepend(here)
    module = importlib.import_module("train")
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=2,
        logger=False,
        callbacks=[*monitors, ModelCheckpoint("run/checkpoints", save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module.Net(width=5), module.Data())


def kept(folder: str = "run/hessrank") -> list[dict[str, Any]]:
    state = torch.load(f"{folder}/monitor.pt", weights_only=True)
    return list(state["monitor"]["history"])


SAME = ("rank", "rank_outer", "rank_functional", "bound", "batch_bound", "counts", "tolerance")
SAME += ("loss", "rtol", "method", "gap", "num_samples", "module_mode", "reference", "step")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "lanczos", "rtol": 1e-2, "seed": 7, "max_samples": 9},
        {"module_mode": "train", "layers": True},
    ],
    ids=str,
)
def test_ranks_are_the_monitors_to_the_digit(
    here: Path, hessrank: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monitor = HessianRankMonitor(**options)
    train(here, monkeypatch, monitor)
    result = hessrank(*COMMAND)
    assert result.exit_code == 0, result.output
    live = monitor.history[1:]  # there is no checkpoint of the first, before any step
    assert len(live) == 2
    for found, expected in zip(kept(), live, strict=True):
        for key in SAME:
            assert found.get(key) == expected.get(key), key
        assert ("layers" in found) is bool(options.get("layers"))
        assert found.get("layers") == expected.get("layers")


def test_other_data_are_said_to_be_others(
    here: Path, hessrank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = HessianRankMonitor(method="dense")
    train(here, monkeypatch, monitor)
    result = hessrank(*COMMAND, "--data", "train:Data", "--output", "other")
    assert result.exit_code == 0, result.output
    assert "Warning: measured on other data than the run's own" in result.stderr
    assert [x["num_samples"] for x in kept("other")] == [64, 64]
    assert "samples 64" in result.stdout
    bound = hessrank("bound", "train:Net(width=5)", "--data", "train:Data", "--format", "json")
    assert f'"total": {kept("other")[0]["bound"]},' in bound.stdout
    assert '"num_samples": 64' in bound.stdout


def test_an_option_overrides_the_run(
    here: Path, hessrank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(here, monkeypatch, HessianRankMonitor(rtol=1e-2, layers=True))
    assert hessrank(*COMMAND, "--rtol", "machine", "--no-layers").exit_code == 0
    p = kept()[0]["num_parameters"]
    assert kept()[0]["rtol"] == p * torch.finfo(torch.float64).eps
    assert "layers" not in kept()[0]


def test_several_monitors_are_told_apart(
    here: Path, hessrank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(module: Any, batch: Any) -> Any:
        return 2 * torch.nn.functional.mse_loss(module(batch[0]), batch[1])

    train(here, monkeypatch, HessianRankMonitor(), HessianRankMonitor(name="b", loss_fn=twice))
    found, _ = find_checkpoints(Path("run"))
    monitors = recorded_monitors(found)
    assert set(monitors) == {"hessian", "b"}
    assert monitors["b"].asked("loss_fn").endswith("twice")
    assert monitors["hessian"].asked("loss_fn") is None
    result = hessrank(*COMMAND)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "Error: Invalid value for '--name': the run had several monitors: 'hessian', 'b'; name one "
        "of them"
    )
    result = hessrank(*COMMAND, "--name", "b")
    assert result.exit_code == 0
    assert "Warning: the run's monitor was given the loss_fn tests.cli.test_recorded:" in (
        result.stderr
    )
    assert "b/rank" in Path("run/hessrank/measurements.csv").read_text()
    result = hessrank(*COMMAND, "--name", "c")
    assert "there is no monitor 'c': the run had 'hessian', 'b'" in result.stderr


def test_without_a_monitor_data_are_asked_for(
    here: Path, hessrank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(here, monkeypatch)
    result = hessrank(*COMMAND)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "Error: Invalid value for '--data': no HessianRankMonitor has left its reference data in "
        "these checkpoints; name some, as train.py:LitData"
    )
    assert hessrank(*COMMAND, "--data", "train:batch").exit_code == 0


def test_samples_go_with_data(here: Path, hessrank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train(here, monkeypatch, HessianRankMonitor())
    result = hessrank(*COMMAND, "--max-samples", "3")
    assert result.exit_code == 2
    assert "it goes with --data: the run's own reference data are taken whole" in result.stderr
