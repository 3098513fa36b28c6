"""The last word of a run: one line with ranks, bound, and what is missing."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_hessrank import HessianRankMonitor, HessianRankWarning
from lightning_hessrank.monitor.verdict import verdict, where_to_look
from tests.training import QUIET, TRAINS, loader, plain_module

pytestmark = TRAINS
RECORD: dict[str, Any] = {
    **{"rank": 686, "num_parameters": 1210, "method": "dense", "rtol": 2.7e-13, "std_error": 0.0},
    **{"bound": 711, "bound_is_theorem": False, "num_samples": 100, "module_mode": "eval"},
}
END = "; dense, beyond 2.7e-13 max|λ|; 100 samples, eval mode"


def test_from_to_against_the_bound() -> None:
    said = verdict([RECORD, {**RECORD, "rank": 753}, {**RECORD, "rank": 700}], name="hessian")
    assert said == (
        "hessian: rank 686 → 700 (between 686 and 753) of 1,210 parameters; "
        f"bound 711 (reference line){END}; 3 measurements"
    )


def test_what_is_missing_is_said_with_its_reason() -> None:
    last = {**RECORD, "bound_is_theorem": True, "limited_by": "the bound 711 (theorem)"}
    assert verdict([last], name="a", skipped=3, failed=1) == (
        f"a: rank 686 of 1,210 parameters; bound 711 (theorem){END}; limited by the bound 711 "
        "(theorem); 1 measurement (3 skipped by the time budget, 1 failed, as warned above)"
    )
    assert verdict([], name="a", failed=2) == (
        "a: no rank was measured in this process (2 failed, as warned above)"
    )


def test_estimates_and_nan_can_be_told() -> None:
    estimated = {**RECORD, "rank": 9.25, "std_error": 0.5, "method": "lanczos", "rtol": 1e-3}
    assert "rank 9.25 ± 0.50 (standard error) → nan of 1,210" in verdict(
        [estimated, {**RECORD, "rank": math.nan}], name="a"
    )


@pytest.mark.parametrize(
    ("rank", "error", "told"),
    [(4249.64, 72.3, "4,250 ± 72"), (40.0, 2.25, "40.0 ± 2.2"), (7.0, 0.0123, "7.000 ± 0.012")],
)
def test_no_more_digits_than_the_error_leaves(rank: float, error: float, told: str) -> None:
    record = {**RECORD, "rank": rank, "std_error": error}
    assert f"rank {told} (standard error) of 1,210" in verdict([record], name="a")


@pytest.mark.parametrize("error", [math.inf, math.nan])
def test_an_error_that_is_not_known_is_not_told(error: float) -> None:
    assert "rank 40 of" in verdict([{**RECORD, "rank": 40.0, "std_error": error}], name="a")


def test_where_nothing_was_measured_nothing_is_pointed_at(caplog: pytest.LogCaptureFixture) -> None:
    class Manual(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 1)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    monitor = HessianRankMonitor()
    batches = DataLoader(TensorDataset(torch.randn(4, 2)), 2)
    with caplog.at_level(logging.INFO, "lightning_hessrank"):
        logging.getLogger("lightning_hessrank").addHandler(caplog.handler)
        try:
            with pytest.warns(HessianRankWarning, match="loss_fn"):
                pl.Trainer(**QUIET, max_epochs=1, callbacks=[monitor]).fit(Manual(), batches)
        finally:
            logging.getLogger("lightning_hessrank").removeHandler(caplog.handler)
    (last,) = {r.getMessage() for r in caplog.records if "no rank was measured" in r.getMessage()}
    assert last.startswith("hessian: no rank was measured in this process")
    assert "monitor.history" not in last


def test_a_spawned_process_says_where_its_history_is() -> None:
    launcher = type("_MultiProcessingLauncher", (), {})()
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(launcher=launcher),
        checkpoint_callback=SimpleNamespace(best_model_path="a/last.ckpt"),
    )
    said = where_to_look(trainer, "HessianRankMonitor{'name': 'hessian'}")
    assert said.endswith(
        "see torch.load('a/last.ckpt')['callbacks']"
        "[\"HessianRankMonitor{'name': 'hessian'}\"]['history']"
    )
    trainer.checkpoint_callback = None
    assert "checkpoints, of which this run writes none" in where_to_look(trainer, "")


def test_said_once_at_the_end_of_fit(caplog: pytest.LogCaptureFixture) -> None:
    monitor = HessianRankMonitor(method="dense")
    with caplog.at_level(logging.INFO, "lightning_hessrank"):
        logging.getLogger("lightning_hessrank").addHandler(caplog.handler)
        try:
            pl.Trainer(**QUIET, max_epochs=1, callbacks=[monitor]).fit(plain_module(pl), loader())
        finally:
            logging.getLogger("lightning_hessrank").removeHandler(caplog.handler)
    said = {r.getMessage() for r in caplog.records if "measurements." in r.getMessage()}
    first, last = monitor.history
    assert said == {
        f"{verdict([first, last], name='hessian')}. See monitor.history and monitor.plot()"
    }
