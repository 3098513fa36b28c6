"""The dashboard as the callback uses it: options, link, figure of the run, several monitors."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from tensorboard.plugins.hparams import metadata as hparams_metadata
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.dashboard import Dashboard
from lightning_hessrank.dashboard.tab.provider import reader_of_folder
from lightning_hessrank.monitor.callback import HessianRankWarning
from tests.dashboard.figures.drawing import lines
from tests.dashboard.reading import PLAIN, layout, read, report_runs


class Regression(pl.LightningModule):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(loggers: Any, *monitors: HessianRankMonitor, **options: Any) -> None:
    data = TensorDataset(torch.randn(12, 4), torch.randn(12, 2))
    trainer = pl.Trainer(
        max_epochs=1,
        logger=loggers,
        callbacks=list(monitors),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(Regression(), DataLoader(data, batch_size=6, num_workers=0))


@pytest.fixture(autouse=True)
def _few_workers(recwarn: pytest.WarningsRecorder) -> None:
    """Lightning's advice on workers and batches is not the point here."""


@pytest.mark.slow
def test_a_run_with_two_monitors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = TensorBoardLogger(tmp_path)
    monitor = HessianRankMonitor(dashboard=Dashboard(histogram=False, hparams=True))
    coarse = HessianRankMonitor(name="coarse", rtol=1e-2, dashboard=PLAIN)
    with caplog.at_level(logging.INFO):
        fit([logger, CSVLogger(tmp_path)], monitor, coarse)
    assert (
        caplog.text.count("http://localhost:6006/#hessian") == 4
    )  # first and last, of each monitor
    assert caplog.text.rstrip().endswith("coarse: see it at http://localhost:6006/#hessian")
    events = read(logger.log_dir)
    assert list(layout(events)) == [f"{n}: rank of the loss Hessian" for n in ("hessian", "coarse")]
    assert {tag.split("/")[0] for tag in events.Tags()["images"]} == {"hessian-figures"}
    assert events.Tags()["histograms"] == ["coarse-spectrum/decades_above_tolerance"]
    assert [e.value for e in events.Scalars("coarse/rank")] == [r["rank"] for r in coarse.history]

    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = hparams_metadata.parse_experiment_plugin_data(content)
    assert experiment.metric_infos[0].name.tag == "hessian/rank"
    assert [h.name for h in experiment.hparam_infos] == ["width"]

    drawn = lines(monitor.plot(), "rank")
    assert drawn.tolist() == [[r["step"], r["rank"]] for r in monitor.history]


def test_without_a_logger_the_figure_is_still_there() -> None:
    monitor = HessianRankMonitor()
    fit(False, monitor)
    assert len(lines(monitor.plot(), "rank")) == 2


def test_fast_dev_run(tmp_path: Path) -> None:
    monitor = HessianRankMonitor()
    fit(TensorBoardLogger(tmp_path), monitor, fast_dev_run=True)
    assert len(monitor.history) == 2


def test_the_report_is_what_the_tab_shows(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    monitor = HessianRankMonitor(layers=True)
    fit(logger, monitor)
    target = monitor.report(tmp_path / "report.html", plotly="p.js")
    assert target == tmp_path / "report.html"
    (kept,) = report_runs(target.read_text())
    (read,) = reader_of_folder(logger.log_dir).runs_with_details()
    assert [r["rank"] for r in kept["records"]] == [r["rank"] for r in monitor.history]
    assert kept["details"] == read["details"]
    assert kept["about"] == read["about"]
    for mine, written in zip(kept["records"], read["records"], strict=True):
        assert {k: v for k, v in mine.items() if k != "reference"} == written
    assert read["records"][0]["num_samples"] == 6
    assert read["records"][0]["module_mode"] == "eval"


def test_the_monitor_that_was_copied_reports_what_the_copy_measured() -> None:
    monitor = HessianRankMonitor()
    fit(False, copied := copy.deepcopy(monitor))
    assert len(report_runs(monitor._report("p.js"))[0]["details"]) == len(copied.history)
    assert monitor._report("p.js") == copied._report("p.js")


def test_a_resumed_monitor_reports_the_whole_run() -> None:
    monitor, resumed = HessianRankMonitor(), HessianRankMonitor()
    fit(False, monitor)
    resumed.load_state_dict(monitor.state_dict())
    assert resumed._report("p.js") == monitor._report("p.js")
    old = {k: v for k, v in monitor.state_dict().items() if k not in ("details", "about")}
    resumed.load_state_dict(old)  # of version 0.1.0: the numbers without spectra
    (run,) = report_runs(resumed._report("p.js"))
    assert [r["rank"] for r in run["records"]] == [r["rank"] for r in monitor.history]
    assert run["details"] == []


def test_what_was_warned_of_is_shown(tmp_path: Path) -> None:
    def penalised(module: Any, batch: Any) -> Tensor:
        inputs, targets = batch
        penalty = sum(p.square().sum() for p in module.parameters())
        return nn.functional.mse_loss(module.net(inputs), targets) + 1e-3 * penalty

    logger = TensorBoardLogger(tmp_path)
    with pytest.warns(HessianRankWarning, match="the loss has a part"):
        fit(logger, HessianRankMonitor(loss_fn=penalised, dashboard=PLAIN))
    (run,) = reader_of_folder(logger.log_dir).overview()["runs"]
    said = [text for record in run["records"] for text in record.get("warnings", [])]
    assert len(said) == 1
    assert said[0].startswith("the loss has a part that does not pass through")


class Keeping(Logger):
    """Like MLflow's logger of Lightning."""

    class Client:
        def __init__(self) -> None:
            self.kept: dict[tuple[str, str], str] = {}

        def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
            self.kept[run_id, artifact_file] = text

    run_id = name = version = "run7"

    def __init__(self) -> None:
        self.experiment = self.Client()

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_loggers_that_keep_files_get_the_report() -> None:
    kept, off = Keeping(), Keeping()
    for logger, board in ((kept, PLAIN), (off, Dashboard(figures=False, report=False))):
        fit(logger, HessianRankMonitor(dashboard=board))
    ((where, page),) = kept.experiment.kept.items()
    assert where == ("run7", "hessian-report.html")
    assert len(report_runs(page)) == 1
    assert off.experiment.kept == {}


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    from pytorch_lightning.loggers import MLFlowLogger

    monkeypatch.chdir(tmp_path)
    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    monitor = HessianRankMonitor()
    fit(logger, monitor)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(logger.run_id).data.metrics["hessian/rank"] == monitor.history[-1]["rank"]
    names = {x.path for x in client.list_artifacts(logger.run_id)}
    assert {"hessian-figures", "hessian-report.html"} <= names


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    from pytorch_lightning.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=str(tmp_path), offline=True)
    monitor = HessianRankMonitor()
    fit(logger, monitor)
    summary = dict(logger.experiment.summary)
    wandb.finish()
    assert summary["hessian/rank"] == monitor.history[-1]["rank"]
    assert summary["hessian-report"]["_type"] == "html-file"
    assert list(tmp_path.rglob("*.html"))
    assert list(tmp_path.rglob("*overview*.png"))
