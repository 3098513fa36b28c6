"""Other callbacks that watch a rank: served by whatever the method found, and told so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from lightning_hessrank import HessianRankMonitor, HessianRankWarning
from tests.training import QUIET, TRAINS, loader, memory_logger, plain_module

pytestmark = TRAINS


def fit(method: str, watched: str, **options: Any) -> tuple[Any, Any, list[str]]:
    """Train with someone who watches; return trainer, logger and what was warned of."""
    monitor = HessianRankMonitor(method=method, rtol=1e-2)
    stopping = EarlyStopping(watched, patience=9, check_on_train_epoch_end=True)
    logger = memory_logger(pl)
    trainer = pl.Trainer(
        **{**QUIET, "logger": logger}, max_epochs=2, callbacks=[monitor, stopping], **options
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(plain_module(pl), loader())
    said = [str(w.message) for w in caught if w.category is HessianRankWarning]
    return trainer, logger, said


@pytest.mark.parametrize(
    ("method", "watched", "logged"),
    [
        ("lanczos", "hessian/rank", "hessian-estimate/rank"),
        ("lanczos", "hessian/rank_outer", "hessian-estimate/rank_outer"),
        ("dense", "hessian-estimate/rank", "hessian/rank"),
        ("dense", "hessian-estimate/rank_upper", "hessian/rank"),
    ],
)
def test_a_watcher_is_served(method: str, watched: str, logged: str) -> None:
    trainer, logger, said = fit(method, watched)
    assert trainer.current_epoch == 2  # and did not die
    metrics = trainer.callback_metrics
    assert metrics[watched] == metrics[logged]
    assert not any(watched in values for _, values in logger.logged)  # a stand-in is never logged
    assert [text for text in said if watched in text] == [
        f"HessianRankMonitor: EarlyStopping monitors '{watched}', which method='{method}' does not "
        f"log; it is given '{'hessian-estimate' if method == 'lanczos' else 'hessian'}/rank' and "
        "the like instead. Name the method (method='dense'), or monitor the other name"
    ]


def test_ratios_stand_for_those_of_exact_ranks() -> None:
    metrics = fit("lanczos", "hessian/rank_over_bound")[0].callback_metrics
    rank, bound = metrics["hessian-estimate/rank"], metrics["hessian-bound/rank"]
    assert metrics["hessian/rank_over_bound"] == rank / bound


def test_whoever_watches_what_is_logged_hears_nothing() -> None:
    assert not any("monitors" in text for text in fit("dense", "hessian/rank")[2])
