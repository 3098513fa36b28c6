"""The promise: a run with the monitor is, bit by bit, the run without it.

Every kind of state that a run leaves behind is compared, over ways to train and hooks that measure;
then each measure that keeps it so is left out in turn, which the comparison must notice.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.monitor import reference
from lightning_hessrank.monitor import run as monitor_run
from lightning_hessrank.subject import isolated, trainer_view
from lightning_hessrank.subject.state import State
from tests.slow import first
from tests.training import (
    NAMESPACES,
    QUIET,
    TRAINS,
    differences,
    flags,
    loader,
    memory_logger,
    messy_module,
    namespace,
    snapshot,
)

pytestmark = [
    *TRAINS,
    # True of several batches in training mode, with batch norm.
    pytest.mark.filterwarnings("ignore:.*is no weighted mean of their losses"),
]

#: Measures at the first batch, after every second step, at every epoch's end, and at the end.
EVERYWHERE = {"every_n_epochs": 1, "every_n_steps": 2}

SETUPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 3},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "64-bit": {"precision": "64-true"},
    "bf16 weights": {"precision": "bf16-true"},
    "gradient clipping": {"gradient_clip_val": 0.1},
    "anomaly detection": {"detect_anomaly": True},
    "deterministic": {"deterministic": True},
    "overfit_batches": {"overfit_batches": 2},
    "max_steps": {"max_epochs": -1, "max_steps": 5},
    "fast_dev_run": {"fast_dev_run": True},
    "validation": {"val_check_interval": 2},
    "profiler": {"profiler": "simple"},
}


def run(
    monitor: dict[str, Any] | None,
    *,
    name: str = "pytorch_lightning",
    data: Callable[[], DataLoader[Any]] = lambda: loader(shuffle=True),
    module: Callable[[Any], Any] = messy_module,
    callbacks: Callable[[Any], list[Any]] = lambda pl: [],
    **setup: Any,
) -> dict[str, Any]:
    """Train, with the monitor or without, from the same start; return what the run leaves."""
    pl = namespace(name)
    torch.manual_seed(0)
    np.random.seed(1)
    random.seed(2)
    logger = memory_logger(pl)
    trained, train = module(pl), data()
    given = callbacks(pl)
    watching = None
    if monitor is not None:
        options = {
            key: value(train) if callable(value) else value for key, value in monitor.items()
        }
        watching = HessianRankMonitor(on_error="raise", **{"method": "dense", **options})
        given.append(watching)
    options = {**QUIET, "max_epochs": 2, "log_every_n_steps": 1, "logger": logger, **setup}
    trainer = pl.Trainer(callbacks=given, **options)
    before = flags()
    try:
        trainer.fit(trained, train)
        if watching is not None:
            assert len(watching.history) >= 2
        return snapshot(trainer, trained, *generators(train))
    finally:
        torch.set_default_dtype(before["default dtype"])
        torch.use_deterministic_algorithms(False)


def generators(train: DataLoader[Any]) -> list[torch.Generator]:
    return [train.generator] if train.generator is not None else []


@pytest.mark.parametrize("setup", first(1, SETUPS.values()), ids=SETUPS.keys())
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_training_is_bitwise_the_same(setup: dict[str, Any], mode: str) -> None:
    without = run(None, **setup)
    assert differences(without, run({**EVERYWHERE, "module_mode": mode}, **setup)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        {"every_n_epochs": 99, "method": "auto"},
        {"every_n_steps": 1},
        {"every_n_steps": 3},
        {"every_n_epochs": 1, "layers": True},
    ],
    ids=["first and end", "every batch end", "some batch ends", "epoch ends"],
)
@pytest.mark.parametrize("name", NAMESPACES)
@pytest.mark.usefixtures("real_bounds")
def test_from_each_hook_in_both_namespaces(schedule: dict[str, Any], name: str) -> None:
    assert differences(run(None, name=name), run(schedule, name=name)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(5)),
        lambda: loader(shuffle=True, num_workers=1, persistent_workers=True),
    ],
    ids=["own generator", "persistent worker"],
)
@pytest.mark.parametrize("monitor", [{}, {"data": lambda train: train}], ids=["batch", "loader"])
def test_with_the_loader_that_training_runs_on(
    data: Callable[[], DataLoader[Any]], monitor: dict[str, Any]
) -> None:
    assert differences(run(None, data=data), run({**EVERYWHERE, **monitor}, data=data)) == []


@pytest.mark.slow
def test_with_weight_averaging() -> None:
    def averaging(pl: Any) -> list[Any]:
        found = importlib.import_module(f"{pl.__name__}.callbacks")
        return [found.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)]

    setup: dict[str, Any] = {"callbacks": averaging, "max_epochs": 3}
    setup["module"] = lambda pl: messy_module(pl, lock=False)  # Lightning copies it for averaging
    assert differences(run(None, **setup), run(EVERYWHERE, **setup)) == []


# -- the comparison can fail: leave out one measure at a time ----------------------------------


def without_copy(patch: pytest.MonkeyPatch) -> None:
    """Measure on the live module, which is float64 here already."""
    patch.setattr(isolated, "shadow_copy", lambda module, **options: module)
    patch.setattr(State, "rewound", lambda state: nullcontext())
    patch.setattr(isolated, "release", lambda module: None)


def without_restored_dtype(patch: pytest.MonkeyPatch) -> None:
    set_default_dtype = torch.set_default_dtype
    patch.setattr(
        isolated, "differentiable_twice", lambda dtype, **_: nullcontext(set_default_dtype(dtype))
    )


def without_restored_loader(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(monitor_run, "as_batches", lambda data, transfer: map(transfer, data))


LEFT_OUT: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "torch generator": (
        lambda patch: patch.setattr(torch, "set_rng_state", lambda state: None),
        "/rng/torch",
    ),
    "numpy generator": (
        lambda patch: patch.setattr(np.random, "set_state", lambda state: None),
        "/rng/numpy",
    ),
    "python generator": (
        lambda patch: patch.setattr(random, "setstate", lambda state: None),
        "/rng/python",
    ),
    "default dtype": (without_restored_dtype, "/flags/default dtype"),
    "loader's generator": (without_restored_loader, "/rng/loaders"),
    "copy: buffers": (without_copy, "/weights/calls"),
    "copy: batch norm": (without_copy, "/weights/net.norm.running_mean"),
    "copy: metrics": (without_copy, "/metric mean_loss"),
    "copy: attributes": (without_copy, "/attribute steps"),
    "copy: containers": (without_copy, "/attribute losses"),
    "copy: generators of the module": (without_copy, "/rng/own torch"),
}


CONTROL: dict[str, Any] = {
    "precision": "64-true",
    "module": lambda pl: messy_module(pl, logs=False),
    "data": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(5)),
}
MONITOR = {**EVERYWHERE, "module_mode": "train", "data": lambda train: train}


@pytest.fixture(scope="module")
def control() -> dict[str, Any]:
    """What the run leaves without the monitor."""
    return run(None, **CONTROL)


@pytest.mark.slow
def test_control_is_the_same_with_nothing_left_out(control: dict[str, Any]) -> None:
    assert differences(control, run(MONITOR, **CONTROL)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("leave_out", "noticed"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_comparison_notices_what_is_left_out(
    leave_out: Callable[[pytest.MonkeyPatch], None],
    noticed: str,
    control: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave_out(monkeypatch)
    found = differences(control, run(MONITOR, **CONTROL))
    assert any(path.startswith(noticed) for path in found), found


def test_lightning_refuses_the_copy_where_logging_is_not_silenced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer_view, "_SILENT", ())
    with pytest.raises(Exception, match="reset"):
        run({})


def test_reference_batch_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step changes its batch in place; the fingerprint would tell."""
    pl = namespace("pytorch_lightning")

    def fingerprints() -> set[str]:
        monitor = HessianRankMonitor(every_n_steps=1, on_error="raise")
        trainer = pl.Trainer(max_steps=3, callbacks=[monitor], **QUIET)
        trainer.fit(messy_module(pl), loader())
        batches = monitor.state_dict()["reference"]["batches"][0]
        return {reference.fingerprint(batches), *(x["reference"] for x in monitor.history)}

    assert len({x[:16] for x in fingerprints()}) == 1
    monkeypatch.setattr(reference, "clone_batch", lambda batch: batch)
    assert len({x[:16] for x in fingerprints()}) == 2
