"""What a copied module may see of its trainer, and that it cannot change any of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl

from lightning_hessrank.subject.trainer_view import (
    ManualOptimizationError,
    TrainerView,
    detach_from_trainer,
)


def trainer(**attributes: Any) -> Any:
    return SimpleNamespace(global_step=3, callback_metrics={"loss": 1.0}, **attributes)


def test_it_reads_and_does_not_write() -> None:
    live = trainer(logger=object())
    view: Any = TrainerView(live)
    assert view.global_step == 3
    view.callback_metrics["loss"] = 2.0
    assert live.callback_metrics == {"loss": 1.0}
    assert view.logger is not live.logger
    view.logger.experiment.add_scalar("a", 1.0)  # swallowed
    with pytest.raises(AttributeError, match=r"sets SimpleNamespace.global_step.*loss_fn="):
        view.global_step = 4
    assert live.global_step == 3


def test_a_detached_module_logs_nothing_and_steps_no_optimiser() -> None:
    module = pl.LightningModule()
    detach_from_trainer(module, trainer(optimizers=[]))
    assert module.log("loss", 1.0) is None
    assert module.log_dict({"loss": 1.0}) is None
    with pytest.raises(ManualOptimizationError, match="drives the optimiser by hand"):
        module.manual_backward(None)  # type: ignore[arg-type]
