"""Figures for loggers other than TensorBoard's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from matplotlib.figure import Figure
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger

from lightning_hessrank.dashboard import Dashboard, scalars
from tests.dashboard import synthetic
from tests.dashboard.reading import FIGURES, read, write


class WithImages(CSVLogger):
    """Like Weights & Biases' logger of Lightning."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.images: list[tuple[str, int | None, Any]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images += [(key, step, image) for image in images]


class MLflowClient:
    def __init__(self) -> None:
        self.logged: list[tuple[str, str]] = []

    def log_figure(self, run_id: str, figure: Figure, artifact_file: str) -> None:
        assert isinstance(figure, Figure)
        self.logged.append((run_id, artifact_file))


class CometExperiment:
    def __init__(self) -> None:
        self.logged: list[tuple[str, int]] = []

    def log_figure(
        self, figure_name: str, figure: Figure, overwrite: bool = False, step: int = 0
    ) -> None:
        assert isinstance(figure, Figure)
        self.logged.append((figure_name, step))


class Elsewhere:
    """A logger around someone else's experiment."""

    run_id = "run7"

    def __init__(self, experiment: Any) -> None:
        self.experiment = experiment
        self.metrics: list[tuple[Mapping[str, float], int]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append((metrics, step))


def test_any_logger_gets_what_it_can_take(tmp_path: Path) -> None:
    class Bare:
        """Has no experiment, as Lightning's base class allows."""

        log_metrics = Elsewhere.log_metrics
        metrics: ClassVar[list[Any]] = []

    csv, images = CSVLogger(tmp_path / "csv"), WithImages(tmp_path / "images")
    mlflow, comet, plain = map(Elsewhere, (MLflowClient(), CometExperiment(), object()))
    board = TensorBoardLogger(tmp_path / "board")
    loggers = [csv, images, mlflow, comet, plain, board, Bare(), DummyLogger()]
    (one,) = synthetic.run(1)
    write(Dashboard(), loggers, [one])
    csv.save()
    header, row = (Path(csv.log_dir) / "metrics.csv").read_text().splitlines()
    found = dict(zip(header.split(","), row.split(","), strict=True))
    values = scalars(one[0])
    assert {k: float(v) for k, v in found.items()} == {**values, "step": 0}
    assert mlflow.metrics == comet.metrics == plain.metrics == [(values, 0)]

    assert [key for key, _, _ in images.images] == [f"hessian-figures/{x}" for x in FIGURES]
    assert {(step, image.size, image.mode) for _, step, image in images.images} == {
        (0, (672, 320), "RGB")
    }
    assert mlflow.experiment.logged == [("run7", f"hessian-figures/{x}/0.png") for x in FIGURES]
    assert comet.experiment.logged == [(f"hessian-figures/{x}", 0) for x in FIGURES]
    assert len(read(board.log_dir).Tags()["images"]) == 5


def test_no_logger_and_the_stand_in_of_fast_dev_run(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "lightning_hessrank.dashboard.board.draw", lambda *_: drawn.append("figure") or []
    )
    for loggers in ([], [DummyLogger()]):
        assert Dashboard().start(loggers) == ""
        write(Dashboard(), loggers)
    assert not drawn  # nobody would see it
