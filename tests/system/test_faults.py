"""What goes wrong while measuring: training goes on, the log says what happened, nothing leaks.

`faults.md` is the table of these tests.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_hessrank import HessianRankMonitor, bounding, measure, opening
from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.monitor import bounds
from lightning_hessrank.monitor.callback import HessianRankWarning
from tests.training import QUIET, TRAINS, loader, memory_logger, plain_module

pytestmark = TRAINS

TABLE = Path(__file__).with_name("faults.md")
EPOCHS, BATCHES = 3, 4
SCHEDULED = [0, 4, 8, 12]


@dataclass(frozen=True)
class Fault:
    """One row of the table."""

    name: str
    break_run: Callable[[pytest.MonkeyPatch, dict[str, Any]], None]
    """Breaks the second measurement, or all; may change the run's pieces."""
    measured: list[int | None]
    """Steps in the history; ``None`` stands for a rank of nan."""
    said: list[str]


FAULTS: list[Fault] = []


def fault(
    name: str, measured: list[Any], *said: str
) -> Callable[[Callable[[pytest.MonkeyPatch, dict[str, Any]], None]], None]:
    def add(break_run: Callable[[pytest.MonkeyPatch, dict[str, Any]], None]) -> None:
        FAULTS.append(Fault(name, break_run, measured, list(said)))

    return add


def fail_call(
    number: int, patch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception
) -> None:
    """Let one call of something raise."""
    real, calls = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise error
        return real(*args, **kwargs)

    patch.setattr(owner, name, wrapped)


def no_bound(patch: pytest.MonkeyPatch) -> None:
    def reference_bound(*_: Any, **__: Any) -> Any:
        raise IndexError("list index out of range")

    patch.setattr(bounds, "reference_bound", reference_bound)


@fault(
    "a product fails",
    [0, 8, 12],
    "no rank was measured at step 4: RuntimeError: no kernel for this product"
    " (on_error='raise' shows the traceback)",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    fail_call(2, patch, measure, "dense_parts", RuntimeError("no kernel for this product"))


@fault(
    "out of memory",
    [0, 8, 12],
    "no rank was measured at step 4: RuntimeError: [enforce fail at alloc_cpu.cpp:121] "
    "DefaultCPUAllocator: can't allocate memory (on_error='raise' shows the traceback)",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    text = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"
    fail_call(2, patch, opening, "LossCurvature", RuntimeError(text))


@fault(
    "the eigenvalue solver does not converge",
    [0, 8, 12],
    "no rank was measured at step 4: LinAlgError: linalg.eigh: The algorithm failed to converge"
    " (on_error='raise' shows the traceback)",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    text = "linalg.eigh: The algorithm failed to converge"
    fail_call(2, patch, measure, "dense_parts", torch.linalg.LinAlgError(text))


@fault(
    "the loss is not finite from the second epoch on",
    [0, 4, None, None],
    "the rank is nan, first at step 8: the network's output is not finite (18 of 18 values): look "
    "at the weights and the inputs",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    class Diverge(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                with torch.no_grad():
                    pl_module.net.weight.fill_(torch.nan)

    run["callbacks"].append(Diverge())


@fault(
    "the Hessian is not finite at a finite loss",
    [None, None, None, None],
    "the rank is nan, first at step 0: a Hessian-vector product is not finite at a finite loss",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    def loss(module: Any, batch: Any) -> Any:
        zero = module.net(batch[0]).sum() * 0
        return zero.abs().pow(1.5).mean() + torch.nn.functional.cross_entropy(
            module.net(batch[0]), batch[1]
        )

    run["monitor"]["loss_fn"] = loss


class Failing(Dataset[Any]):
    """Raises the first two times that it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        if self.reads <= 2:
            raise OSError("the file server is away")
        return loader().dataset[index]


@fault(
    "the reference loader raises",
    [4, 8, 12],
    "there are no reference data: OSError: the file server is away"
    " (on_error='raise' shows the traceback)",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    run["monitor"]["data"] = DataLoader(Failing(), batch_size=6)


@fault(
    "the logger's disk is full",
    SCHEDULED,
    "what was measured could not be logged: OSError: [Errno 28] No space left on device"
    " (on_error='raise' shows the traceback)",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    fail_call(2, patch, run["logger"], "log_metrics", OSError(28, "No space left on device"))


@fault(
    "the module cannot be copied",
    [],
    "no rank was measured at step 0: RuntimeError: not to be copied"
    " (on_error='raise' shows the traceback)",
    "4 of 4 measurements failed; the reason was given above",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    class Stubborn(type(run["module"])):  # type: ignore[misc]
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("not to be copied")

    run["module"].__class__ = Stubborn


@fault(
    "the step looks for a key that is not there",
    [],
    "no rank was measured at step 0: KeyError: 0 (on_error='raise' shows the traceback)",
    "4 of 4 measurements failed; the reason was given above",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    patch.setattr(bounds, "reference_bound", bounding.reference_bound)  # is not asked

    def loss(module: Any, batch: Any) -> Any:
        return {}[0]

    run["monitor"]["loss_fn"] = loss


@fault(
    "the loss does not depend on the parameters",
    [],
    "no rank was measured at step 0: the loss of loss_fn does not depend on any trainable "
    "parameter (no gradient flows); look for .detach(), torch.no_grad() or frozen parameters",
    "4 of 4 measurements failed; the reason was given above",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    patch.setattr(bounds, "reference_bound", bounding.reference_bound)  # is not asked
    run["monitor"]["loss_fn"] = lambda module, batch: batch[0].sum()


@fault(
    "neither measurement nor bound can be had at first",
    [4, 8, 12],
    "no rank was measured at step 0: RuntimeError: no kernel for this product"
    " (on_error='raise' shows the traceback)",
    "the rank is logged without a bound: IndexError: list index out of range",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    no_bound(patch)
    fail_call(1, patch, measure, "dense_parts", RuntimeError("no kernel for this product"))


@fault(
    "no known loss function",
    SCHEDULED,
    "the total rank only, without parts and bound: no known loss function was seen in the step, "
    "nor results of modules through which all of the loss depends on the parameters, so the output "
    'of the network is unknown; return {"loss": loss, "output": output} from training_step or '
    "loss_fn, or use a loss of torch.nn.functional",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    patch.setattr(bounds, "reference_bound", bounding.reference_bound)
    run["monitor"]["loss_fn"] = lambda module, batch: (
        (batch[0] @ module.net.weight.T + module.net.bias).pow(4).mean()
    )


@fault(
    "the bound fails",
    SCHEDULED,
    "the rank is logged without a bound: IndexError: list index out of range",
)
def _(patch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    no_bound(patch)


@pytest.mark.parametrize("case", FAULTS, ids=[case.name for case in FAULTS])
def test_training_goes_on(case: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    run: dict[str, Any] = {"monitor": {}, "callbacks": [], "logger": memory_logger(pl)}
    run["module"] = plain_module(pl)
    case.break_run(monkeypatch, run)
    monitor = HessianRankMonitor(**{"method": "dense", **run["monitor"]})
    trainer = pl.Trainer(
        **{**QUIET, "logger": run["logger"]},
        max_epochs=EPOCHS,
        callbacks=[monitor, *run["callbacks"]],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(run["module"], loader())
    assert trainer.global_step == EPOCHS * BATCHES
    said = [str(w.message) for w in caught if w.category is HessianRankWarning]
    assert said == [f"HessianRankMonitor: {text}" for text in case.said]
    measured = [r["step"] if r["rank"] == r["rank"] else None for r in monitor.history]
    assert measured == case.measured


@pytest.mark.parametrize("case", FAULTS[:3], ids=[case.name for case in FAULTS[:3]])
def test_errors_are_raised_where_that_was_asked_for(
    case: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: dict[str, Any] = {"monitor": {}, "logger": None}
    case.break_run(monkeypatch, run)
    monitor = HessianRankMonitor(method="dense", on_error="raise")
    trainer = pl.Trainer(**QUIET, max_epochs=EPOCHS, callbacks=[monitor])
    with pytest.raises(RuntimeError) as caught:
        trainer.fit(plain_module(pl), loader())
    assert str(caught.value) in case.said[0]
    assert trainer.global_step == BATCHES


def live_bytes() -> int:
    gc.collect()
    return sum(
        x.untyped_storage().nbytes() for x in gc.get_objects() if issubclass(type(x), torch.Tensor)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lightning_hessrank.monitor.callback.HessianRankWarning")
@pytest.mark.parametrize("failing", [False, True])
def test_nothing_leaks(failing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors alive after 50 measurements are those after two, whether they fail or not."""
    if failing:
        real = opening.LossCurvature

        def curvature(*args: Any, **kwargs: Any) -> LossCurvature:
            held = real(*args, **kwargs)
            calls.append(1)
            if len(calls) > 2:
                raise RuntimeError(f"with {held.num_parameters} parameters in memory")
            return held

        monkeypatch.setattr(opening, "LossCurvature", curvature)
    alive: list[int] = []
    calls: list[int] = []

    class Count(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch in (1, 25, 49):
                alive.append(live_bytes())

    monitor = HessianRankMonitor(method="dense")
    trainer = pl.Trainer(**QUIET, max_epochs=50, callbacks=[monitor, Count()])
    trainer.fit(plain_module(pl), loader(6))
    assert len(monitor.history) == (2 if failing else 51)
    assert len(alive) == 3
    assert max(alive) - alive[0] < 1000


def test_table_is_that_of_the_rows() -> None:
    """To write it anew: ``python -m tests.system.test_faults``."""
    assert TABLE.read_text() == "\n".join(render()) + "\n"


def render() -> Iterator[str]:
    yield "# What can go wrong, and what then happens"
    yield ""
    yield "Made by `test_faults.py`, which breaks a run of three epochs in each of these ways and"
    yield "fails if this file says anything else. Training went on to the end in every row."
    yield ""
    yield "| fault | measured, of four times | said |"
    yield "|---|---|---|"
    for case in FAULTS:
        shown = ", ".join("nan" if x is None else f"step {x}" for x in case.measured) or "never"
        yield f"| {case.name} | {shown} | {'<br>'.join(case.said)} |"


if __name__ == "__main__":
    TABLE.write_text("\n".join(render()) + "\n")
