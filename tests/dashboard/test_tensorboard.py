"""What only TensorBoard takes: histogram, layout, hyperparameters; files that others began."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.plugins.hparams import metadata as hparams_metadata

from lightning_hessrank.dashboard import Dashboard
from lightning_hessrank.dashboard.tensorboard import LAYOUT_TAG
from lightning_hessrank.results import Measurement
from tests.dashboard import synthetic
from tests.dashboard.reading import PLAIN, layout, read, write


def test_histogram_counts_the_eigenvalues_beyond_the_tolerance(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    total = synthetic.dense(400, 250, decades=14)
    write(Dashboard(), [logger], [(Measurement(0, 0, total), [])])
    (event,) = read(logger.log_dir).Histograms("hessian-spectrum/decades_above_tolerance")
    found = event.histogram_value
    assert (found.min, found.max, found.num) == (-8, 16, 400)
    limits, counts = np.array(found.bucket_limit), np.array(found.bucket)
    np.testing.assert_allclose(limits[-48:], np.arange(-7.5, 16.5, 0.5))
    assert counts[limits > 0].sum() == total.rank
    assert counts.sum() == 400
    assert total.eigenvalues is not None
    decades = np.log10(np.abs(total.eigenvalues.numpy()) / total.tolerance).clip(-8, 16)
    assert found.sum == pytest.approx(decades.sum())


@pytest.mark.parametrize("rank", [0, 5])
def test_histogram_of_a_zero_and_of_a_full_matrix(tmp_path: Path, rank: int) -> None:
    logger = TensorBoardLogger(tmp_path)
    total = synthetic.dense(5, rank, noise=0.0)
    write(Dashboard(), [logger], [(Measurement(0, 0, total), [])])
    (event,) = read(logger.log_dir).Histograms("hessian-spectrum/decades_above_tolerance")
    limits = np.array(event.histogram_value.bucket_limit)
    assert np.array(event.histogram_value.bucket)[limits > 0].sum() == rank


def test_an_empty_event_file_of_a_run_that_died_is_no_obstacle(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, version=0)
    Path(logger.log_dir).mkdir(parents=True)
    (Path(logger.log_dir) / "events.out.tfevents.1.host").touch()
    write(PLAIN, [logger])
    logger.experiment.flush()
    written = [p for p in Path(logger.log_dir).glob("*.tfevents.*") if p.stat().st_size]
    assert LAYOUT_TAG in read(written[0]).Tags()["tensors"]


def test_resume_into_the_same_folder(tmp_path: Path) -> None:
    runs = synthetic.run(4)
    for part in (runs[:2], runs[2:]):
        logger = TensorBoardLogger(tmp_path, version=0)
        write(PLAIN, [logger], part)
        logger.finalize("success")
    events = read(logger.log_dir)
    assert [e.step for e in events.Scalars("hessian/rank")] == [m.step for m, _ in runs]
    assert list(layout(events)) == ["hessian: rank of the loss Hessian"]


def test_hparams_on_request(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    Dashboard(hparams=False).start([logger], {"lr": 0.1})
    Dashboard(hparams=True).start([logger], {"lr": 0.1, "widths": (3, 4)})
    logger.log_hyperparams({"lr": 0.1, "widths": (3, 4)})  # as Lightning does after `setup`
    logger.experiment.flush()
    events = read(logger.log_dir)
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = hparams_metadata.parse_experiment_plugin_data(content)
    assert [m.name.tag for m in experiment.metric_infos] == [
        "hessian/rank",
        "hessian/rank_over_bound",
        "hessian-tolerance/rank_1e-3",
    ]
    assert {h.name for h in experiment.hparam_infos} == {"lr", "widths"}


def test_hparams_by_default_only_beside_the_placeholder(tmp_path: Path) -> None:
    """Where the user has metrics of their own, or no hyperparameters, nothing is written."""
    own = TensorBoardLogger(tmp_path, name="own", default_hp_metric=False)
    none, usual = (TensorBoardLogger(tmp_path, name=name) for name in ("none", "usual"))
    for logger, params in ((own, {"lr": 0.1}), (none, {}), (usual, {"lr": 0.1})):
        Dashboard().start([logger], params)
    usual.log_hyperparams({"lr": 0.1})  # Lightning's placeholder does not take ours away
    own.log_hyperparams({"lr": 0.1}, {"val_acc": 0.5})
    listed = {}
    for logger in (own, none, usual):
        logger.experiment.flush()
        with suppress(KeyError):
            metadata = read(logger.log_dir).SummaryMetadata("_hparams_/experiment")
            found = hparams_metadata.parse_experiment_plugin_data(metadata.plugin_data.content)
            listed[logger.name] = [m.name.tag for m in found.metric_infos]
    assert listed == {
        "own": ["val_acc"],
        "usual": [
            "hessian/rank",
            "hessian/rank_over_bound",
            "hessian-tolerance/rank_1e-3",
            "hp_metric",
        ],
    }
