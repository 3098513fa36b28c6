"""The dashboard as the callback uses it: options, link, figure of the run, several monitors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.plugins.hparams import metadata as hparams_metadata
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.dashboard import Dashboard
from tests.dashboard.figures.drawing import lines
from tests.dashboard.reading import PLAIN, layout, read


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
    assert caplog.text.count("pinnedCards") == 2  # once for each monitor
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
