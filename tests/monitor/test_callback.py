"""When it measures: every way in which a run can begin, go on, and end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.tuner import Tuner
from torch import Tensor, nn

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.monitor import run
from lightning_hessrank.monitor.callback import HessianRankWarning
from tests.training import QUIET, TRAINS, loader, memory_logger, plain_module

pytestmark = TRAINS

BATCHES = 4  # of six samples, in an epoch


def fit(
    monitor: HessianRankMonitor | list[Any],
    module: Any = None,
    *,
    ckpt_path: str | None = None,
    val: bool = False,
    **setup: Any,
) -> pl.Trainer:
    callbacks = monitor if isinstance(monitor, list) else [monitor]
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 2, "callbacks": callbacks, **setup})
    trainer.fit(
        plain_module(pl) if module is None else module,
        loader(),
        loader(12) if val else None,
        ckpt_path=ckpt_path,
    )
    return trainer


def steps(monitor: HessianRankMonitor) -> list[int]:
    return [record["step"] for record in monitor.history]


def strict(**options: Any) -> HessianRankMonitor:
    return HessianRankMonitor(on_error="raise", **{"method": "dense", **options})


@pytest.mark.parametrize(
    ("schedule", "setup", "expected"),
    [
        ({}, {}, [0, 4, 8]),
        ({"every_n_epochs": 2}, {"max_epochs": 3}, [0, 8, 12]),
        ({"every_n_epochs": 9}, {}, [0, 8]),
        ({"every_n_steps": 3}, {}, [0, 3, 6, 8]),
        ({"every_n_steps": 4}, {}, [0, 4, 8]),
        ({"every_n_steps": 3, "every_n_epochs": 1}, {}, [0, 3, 4, 6, 8]),
        ({"every_n_steps": 1}, {"accumulate_grad_batches": 2}, [0, 1, 2, 3, 4]),
        ({"every_n_steps": 2}, {"accumulate_grad_batches": 4}, [0, 2]),
        ({"every_n_steps": 2}, {"max_steps": 5, "max_epochs": -1}, [0, 2, 4, 5]),
        ({}, {"max_steps": 5, "max_epochs": -1}, [0, 4, 5]),
        ({}, {"fast_dev_run": True}, [0, 1]),
        ({}, {"fast_dev_run": 3}, [0, 3]),
        ({}, {"overfit_batches": 2}, [0, 2, 4]),
        ({}, {"limit_train_batches": 1}, [0, 1, 2]),
        ({}, {"max_epochs": 0}, []),
    ],
)
def test_schedule(schedule: dict[str, Any], setup: dict[str, Any], expected: list[int]) -> None:
    monitor = strict(**schedule)
    fit(monitor, **setup)
    assert steps(monitor) == expected


@pytest.mark.parametrize(
    ("schedule", "setup", "expected"),
    [
        ({"every_n_epochs": 2}, {"max_epochs": 5}, [(0, 0), (8, 1), (16, 3), (20, 4)]),
        ({"every_n_epochs": 2}, {"max_steps": 3}, [(0, 0), (3, 0)]),
        ({"every_n_steps": 3}, {}, [(0, 0), (3, 0), (6, 1), (8, 1)]),
    ],
)
def test_epoch_is_the_index_of_the_one_last_trained_in(
    schedule: dict[str, Any], setup: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    monitor = strict(**schedule)
    fit(monitor, **setup)
    assert [(record["step"], record["epoch"]) for record in monitor.history] == expected


def test_sanity_check_and_validation_measure_nothing() -> None:
    monitor = strict()
    trainer = fit(monitor, val=True, num_sanity_val_steps=2, val_check_interval=2)
    assert steps(monitor) == [0, 4, 8]
    trainer.validate(plain_module(pl), loader(), verbose=False)
    assert steps(monitor) == [0, 4, 8]


def test_validation_before_fit_does_not_matter() -> None:
    monitor, module = strict(), plain_module(pl)
    trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[monitor])
    trainer.validate(module, loader(), verbose=False)
    trainer.fit(module, loader())
    assert steps(monitor) == [0, 4]


def test_early_stopping_can_watch_the_rank() -> None:
    monitor = strict()
    stop = EarlyStopping("hessian/rank", patience=1, check_on_train_epoch_end=True)
    trainer = fit([monitor, stop], max_epochs=9)  # the rank of a linear model does not move
    assert trainer.current_epoch == 2
    assert steps(monitor) == [0, 4, 8]


def test_checkpoints_can_be_chosen_by_the_rank(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="hessian/rank", filename="{hessian/rank:.0f}-{epoch}")
    monitor = strict()
    fit([monitor, best], enable_checkpointing=True)
    assert best.best_model_score == monitor.history[1]["rank"]


def test_several_optimisers_count_their_steps() -> None:
    class Adversaries(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(data_loss(self, batch))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(x.parameters(), lr=0.1) for x in (self.a, self.b)]

    def data_loss(module: Any, batch: Any) -> Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(module.a(inputs) + module.b(inputs), labels)

    monitor = strict(every_n_steps=3, loss_fn=data_loss)
    fit(monitor, Adversaries(), max_epochs=1)
    assert steps(monitor) == [0, 4, 6, 8]  # two steps a batch: the first batch end at or beyond


# -- resume ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("val", [False, True])
@pytest.mark.parametrize("schedule", [{}, {"every_n_steps": 3}])
def test_resumed_history_is_that_of_an_uninterrupted_run(
    tmp_path: Path, val: bool, schedule: dict[str, Any]
) -> None:
    whole = strict(**schedule)
    fit(whole, max_epochs=3, val=val)

    first, save = strict(**schedule), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit([first, save], max_epochs=2, val=val, enable_checkpointing=True)
    path = str(tmp_path / "epoch=0.ckpt")
    torch.load(path, weights_only=True)

    resumed = strict(**schedule)
    fit([resumed], max_epochs=3, val=val, ckpt_path=path)
    wanted = [(r["step"], r["epoch"], r["rank"], r["reference"]) for r in whole.history]
    assert [(r["step"], r["epoch"], r["rank"], r["reference"]) for r in resumed.history] == wanted


def test_other_reference_data_on_resume_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_hessrank.monitor.reference.MAX_SAVED_BYTES", 0)
    path = str(tmp_path / "run.ckpt")
    fit(strict(data=next(iter(loader(6)))), max_epochs=1).save_checkpoint(path)
    monitor = strict(data=next(iter(loader(5))))
    with pytest.warns(HessianRankWarning, match="the reference data differ from those of the run"):
        fit(monitor, ckpt_path=path)
    assert len({record["reference"] for record in monitor.history}) == 2
    same = strict(data=next(iter(loader(6))))
    fit(same, ckpt_path=path)
    assert len({record["reference"] for record in same.history}) == 1


def test_a_run_keeps_its_meaning_on_resume(tmp_path: Path) -> None:
    path = str(tmp_path / "run.ckpt")
    fit(strict(rtol=1e-3), max_epochs=1).save_checkpoint(path)
    monitor = strict(rtol=1e-2, module_mode="train")
    with pytest.warns(HessianRankWarning) as caught:
        fit(monitor, ckpt_path=path)
    (said,) = [str(w.message) for w in caught if w.category is HessianRankWarning]
    assert said == (
        "HessianRankMonitor: all ranks of a run mean the same, so the resumed one goes on with "
        "rtol=0.001 instead of 0.01, module_mode='eval' instead of 'train'"
    )
    assert [record["rtol"] for record in monitor.history] == [1e-3, 1e-3, 1e-3]


def test_resume_from_a_run_without_the_monitor(tmp_path: Path) -> None:
    path = str(tmp_path / "run.ckpt")
    fit([], max_epochs=1).save_checkpoint(path)
    monitor = strict()
    fit(monitor, max_epochs=2, ckpt_path=path)
    assert steps(monitor) == [4, 8]


# -- more than one -----------------------------------------------------------------------------


def test_several_monitors_side_by_side(tmp_path: Path) -> None:
    logger = memory_logger(pl)
    monitors = [
        strict(name="small", max_samples=2),
        strict(name="other", data=next(iter(loader(24, batch_size=24)))),
        strict(
            name="data loss", loss_fn=lambda m, b: nn.functional.cross_entropy(m.net(b[0]), b[1])
        ),
    ]
    trainer = fit([*monitors], logger=logger)
    assert {
        f"{name}/rank" for name in ("small", "other", "data loss")
    } <= trainer.callback_metrics.keys()
    assert len({monitor.state_key for monitor in monitors}) == 3
    assert all(steps(monitor) == [0, 4, 8] for monitor in monitors)
    assert monitors[0].history[0]["rank"] < monitors[1].history[0]["rank"]
    path = str(tmp_path / "run.ckpt")
    trainer.save_checkpoint(path)
    again = [strict(name=name) for name in ("other", "small")]
    fit(again, max_epochs=3, ckpt_path=path)
    assert [r["rank"] for r in again[0].history[:3]] == [r["rank"] for r in monitors[1].history]


def test_two_monitors_of_one_name_are_refused_by_the_trainer() -> None:
    with pytest.raises(RuntimeError, match="state_key"):
        fit([strict(), strict()])


def test_second_fit_goes_on_or_begins_anew() -> None:
    monitor, module = strict(), plain_module(pl)
    trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[monitor])
    trainer.fit(module, loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    assert steps(monitor) == [0, 4, 8]
    before = monitor.history
    fit(monitor, max_epochs=1)  # a sweep: another Trainer
    assert steps(monitor) == [0, 4]
    assert len(before) == 3


def test_tuner_leaves_the_history_alone() -> None:
    class Tuned(type(plain_module(pl))):  # type: ignore[misc]
        lr = 0.1

    monitor, module = strict(), Tuned()
    trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[monitor])
    Tuner(trainer).lr_find(module, loader(), num_training=5, update_attr=True)
    assert steps(monitor) == []
    trainer.fit(module, loader())
    assert steps(monitor) == [0, 4]


# -- interruption ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruption_in_the_middle_of_a_measurement(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing half-measured remains, and the same run can go on."""
    released: list[Any] = []

    def release(self: run.Subject) -> None:
        released.append(self)

    monkeypatch.setattr(run.Subject, "release", release)
    real_measure = run.measure

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if len(released) == 1:
            torch.rand(3)
            raise error("in the middle")
        return real_measure(*args, **kwargs)

    monkeypatch.setattr(run, "measure", interrupted)
    monitor, module = strict(), plain_module(pl)
    trainer = pl.Trainer(**QUIET, max_epochs=2, callbacks=[monitor])
    with pytest.raises((error, SystemExit)):
        trainer.fit(module, loader())
    assert len(released) == 2
    assert steps(monitor) == [0]
    trainer.fit(module, loader())
    assert steps(monitor)[-1] == trainer.global_step
