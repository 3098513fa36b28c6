"""`max_overhead`: what is measured, skipped and logged, on a clock of our own; the arguments."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import TensorDataset

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.monitor import run, series
from lightning_hessrank.monitor.clock import Clock
from lightning_hessrank.monitor.settings import Settings
from tests.monitor.fake_time import FakeTime
from tests.slow import first
from tests.training import QUIET, TRAINS, loader, memory_logger, plain_module

pytestmark = TRAINS


class Tick(pl.Callback):
    """A step takes a second."""

    def __init__(self, now: FakeTime) -> None:
        self.now = now

    def on_train_batch_start(self, *args: Any) -> None:
        self.now.seconds += 1.0


@pytest.mark.parametrize("share", first(1, [0.5, 0.3, 0.15]))
def test_measurements_wait_until_the_budget_allows_them(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A measurement takes two seconds: each but the first as early as the share stays below."""
    now, real = FakeTime(), run.measure

    def slow(*args: Any, **kwargs: Any) -> Any:
        now.seconds += 2.0
        return real(*args, **kwargs)

    monkeypatch.setattr(run, "measure", slow)
    monkeypatch.setattr(series, "Clock", lambda: Clock(now))
    monitor = HessianRankMonitor(
        method="dense", every_n_steps=1, max_overhead=share, on_error="raise"
    )
    logger = memory_logger(pl)
    trainer = pl.Trainer(
        **{**QUIET, "logger": logger}, max_epochs=12, callbacks=[Tick(now), monitor]
    )
    trainer.fit(plain_module(pl), loader())

    expected, measured = [0], 2.0
    for step in range(1, 49):  # the first batch has begun before the first measurement
        if (measured + 2.0) / (step + measured + 2.0) < share:
            expected.append(step)
            measured += 2.0
    assert [record["step"] for record in monitor.history] == expected
    assert len(expected) > 2
    assert all(r["overhead"] < share for r in monitor.history[1:])
    skipped = 49 - len(expected)
    assert monitor.state_dict()["skipped"] == skipped
    logged = [x["hessian-time/skipped"] for _, x in logger.logged if "hessian-time/skipped" in x]
    assert max(logged) == skipped


def test_arguments_and_defaults_are_those_of_the_documentation() -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(HessianRankMonitor).parameters.items()
    }
    documented = {
        "every_n_steps": None,
        "method": "auto",
        "rtol": None,
        "data": None,
        "max_samples": 512,
        "loss_fn": None,
        "module_mode": "eval",
        "layers": False,
        "max_overhead": None,
        "on_error": "warn",
        "progress_bar": True,
        "name": "hessian",
        "seed": 0,
    }
    assert {name: defaults[name] for name in documented} == documented
    assert HessianRankMonitor().settings.every_n_epochs == 1
    assert HessianRankMonitor(every_n_steps=5).settings.every_n_epochs is None
    settings = {field.name: field.default for field in dataclasses.fields(Settings)}
    assert {name: defaults[name] for name in settings} == settings  # the command line's defaults
    doc = inspect.getdoc(HessianRankMonitor) or ""
    assert all(f"\n    {name}: " in doc for name in defaults)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"every_n_steps": 0},
            ValueError,
            "every_n_steps must be a positive integer or None, got 0",
        ),
        (
            {"every_n_epochs": 1.5},
            TypeError,
            "every_n_epochs must be a positive integer or None, got 1.5",
        ),
        (
            {"max_samples": True},
            TypeError,
            "max_samples must be a positive integer or None, got True",
        ),
        (
            {"method": "magic"},
            ValueError,
            "method must be one of 'auto', 'dense', 'sketch', 'lanczos', got 'magic'",
        ),
        (
            {"module_mode": "test"},
            ValueError,
            "module_mode must be one of 'eval', 'train', got 'test'",
        ),
        ({"on_error": "x"}, ValueError, "on_error must be one of 'warn', 'raise', got 'x'"),
        (
            {"max_overhead": 5},
            ValueError,
            "max_overhead must be a number between 0 and 1 or None, got 5",
        ),
        (
            {"max_overhead": "5%"},
            TypeError,
            "max_overhead must be a number between 0 and 1 or None, got '5%'",
        ),
        (
            {"loss_fn": "mse"},
            TypeError,
            "loss_fn must be a function loss_fn(module, batch) -> scalar, got 'mse'",
        ),
        ({"layers": 2}, TypeError, "layers must be True, False or 'fine', got 2"),
        ({"name": ""}, ValueError, "name must be a non-empty string, got ''"),
        (
            {"name": "run/hessian"},
            ValueError,
            "name must not contain '/', which ends the group in logged names, got 'run/hessian'",
        ),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        (
            {"dashboard": "x"},
            TypeError,
            "dashboard must be None or a lightning_hessrank.dashboard.Dashboard, e.g. "
            "Dashboard(figures=False), got 'x'",
        ),
        ({"data": []}, ValueError, "data must be a batch or a DataLoader, got an empty list"),
        ({"data": "abc"}, TypeError, "data must be a batch or a DataLoader, got a str: 'abc'"),
        (
            {"data": [(torch.ones(2, 3), torch.ones(2))]},
            TypeError,
            "data must be a batch or a DataLoader, got a list of one tuple: pass the tuple itself",
        ),
        (
            {"data": TensorDataset(torch.ones(2, 3))},
            TypeError,
            "data must be a batch or a DataLoader, got a TensorDataset: wrap it in DataLoader(...)",
        ),
        (
            {"rtol": 1},
            ValueError,
            "rtol must be a number in [0, 1) (relative to the largest |eigenvalue|), got 1",
        ),
    ],
)
def test_nonsense_is_refused_at_construction(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        HessianRankMonitor(**arguments)
    assert str(caught.value) == message
