"""The run of a sharded module: what can be asked of it, and the live module that is measured."""

from __future__ import annotations

from typing import Any

from lightning_hessrank.monitor.failures import Failures
from lightning_hessrank.monitor.form import Form
from lightning_hessrank.monitor.place import Place
from lightning_hessrank.monitor.series import Series
from lightning_hessrank.monitor.settings import Settings
from lightning_hessrank.network.batches import fingerprint
from lightning_hessrank.processes import Processes, UnsupportedStrategyError
from lightning_hessrank.sharded.live import LiveModule
from lightning_hessrank.subject.step import module_step


def check_settings(settings: Settings) -> None:
    """Refuse what shards cannot be asked.

    Raises:
        UnsupportedStrategyError: says what was asked, and what to ask instead.
    """
    if settings.method not in ("auto", "lanczos"):
        raise UnsupportedStrategyError(
            f"method={settings.method!r} needs a whole copy of the module, and "
            "ModelParallelStrategy leaves every process with a part of it; pass method='lanczos' "
            "(or 'auto', which is the same here)"
        )
    if settings.layers:
        raise UnsupportedStrategyError(
            "layers=True needs exact ranks of diagonal blocks, which need a whole copy of the "
            "module, and ModelParallelStrategy leaves every process with a part of it; pass "
            "layers=False"
        )


def live_module(
    module: Any,
    place: Place,
    *,
    settings: Settings,
    series: Series,
    failures: Failures,
    processes: Processes,
) -> LiveModule:
    """Return the module of a run as it is measured, with this process's share of the data.

    Raises:
        ValueError: processes that compute on the same samples were given different ones.
        Exception: see :class:`LiveModule`.
    """
    assert series.reference is not None
    batches = series.reference.batches
    prints = set(processes.gather((processes.data.rank, fingerprint(batches))))
    if len(prints) > len({rank for rank, _ in prints}):
        raise ValueError(
            "tensor-parallel processes compute on the same samples together, but were given "
            "different reference data; let them load the same batches (a sampler that takes its "
            "rank from the data-parallel mesh), or pass the same data=... on all of them"
        )
    live = LiveModule(
        module,
        batches,
        module_step(module, settings.loss_fn),
        processes,
        training=None if series.meaning["module_mode"] == "train" else False,
        seed=settings.seed,
        trainer=place.trainer,
    )
    named = {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}
    form = Form(named, 0, [])
    before, series.form = series.form, form
    if before is not None and (changes := form.changes(before)):
        series.forget_function()
        failures.warn_once(
            f"at step {place.step} the function that is measured has changed: "
            f"{' and '.join(changes)}. Ranks and method follow; ranks before and after are not of "
            "one Hessian"
        )
    return live
