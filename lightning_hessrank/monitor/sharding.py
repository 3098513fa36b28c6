"""The run of a sharded module: what can be asked of it, and the live module that is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_hessrank.monitor.failures import Failures
from lightning_hessrank.monitor.form import Form
from lightning_hessrank.monitor.place import Place
from lightning_hessrank.monitor.series import Series
from lightning_hessrank.monitor.settings import Settings
from lightning_hessrank.network.batches import fingerprint
from lightning_hessrank.processes import Processes, UnsupportedStrategyError
from lightning_hessrank.results import BoundNotAvailableError
from lightning_hessrank.sharded.live import LiveModule
from lightning_hessrank.subject.isolated import IsolatedModule
from lightning_hessrank.subject.step import LossFn, module_step
from lightning_hessrank.subject.subject import Subject

#: Parameters up to which a module is kept whole, in float64, for the bound of its architecture.
MAX_UNSHARDED = 10_000_000


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
            f"layers={settings.layers!r} needs exact ranks of diagonal blocks, which need a whole "
            "copy of the module, and ModelParallelStrategy leaves every process with a part of it; "
            "pass layers=False"
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
        module_step(module, settings.loss_fn, watched=False),  # differences ask for the loss alone
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


class Unsharded:
    """A module as it was before its strategy sharded it, for what its architecture implies.

    Two designs were weighed. (a) Gather the weights when a bound is wanted: they are not needed,
    and no process should hold them. (b) Copy the module in ``setup``, while it is whole. (b) needs
    no collective; the copy is made of small modules only, and freed when the bound is found.

    Args:
        module: the live one, before ``configure_model``; ``None``: it was not there in time.
        trainer: that its step may read.
    """

    def __init__(self, module: Any = None, trainer: Any = None) -> None:
        self._copy: IsolatedModule | None = None
        self._missing = "and it was not seen before it was sharded"
        if module is None:
            return
        self._missing = ""
        p = sum(x.numel() for x in module.parameters())
        if not p:
            self._missing = "and its layers are made in configure_model, when they are sharded"
        elif p > MAX_UNSHARDED:
            self._missing = f"of {p:,} parameters (a copy is kept of {MAX_UNSHARDED:,} at most)"
        else:
            try:
                self._copy = IsolatedModule(module, trainer=trainer)
            except Exception as error:  # whatever the module does to a copy, it can be trained
                self._missing = f"and it could not be copied before it was sharded ({error})"

    @contextmanager
    def subject(
        self, live: Any, batches: list[Any] | None, loss_fn: LossFn | None, **options: Any
    ) -> Iterator[Subject]:
        """Give the copy with the reference data of all processes; it is freed afterwards.

        Args:
            live: the sharded module.
            batches: of all processes; ``None`` where they are too large.
            loss_fn: the user's own, instead of the ``training_step``.
            options: of the :class:`Subject`.

        Raises:
            BoundNotAvailableError: there is no copy, or it has other parameters than ``live``.
        """
        if self._copy is None or batches is None:
            why = self._missing or "and the reference data of all processes are too large together"
            raise BoundNotAvailableError(f"no process holds the whole module, {why}")
        copy, self._copy = self._copy, None
        self._missing = "and the copy that was made before it was sharded has been used"
        sizes = {n: x.numel() for n, x in live.named_parameters() if x.requires_grad}
        if sizes != {n: x.numel() for n, x in copy.parameters.items()}:
            raise BoundNotAvailableError(
                "the sharded module has other trainable parameters than before it was sharded"
            )
        step = module_step(copy.shadow, loss_fn)
        subject = Subject(copy.shadow, batches, step, **options)
        try:
            yield subject
        finally:
            subject.release()
            copy.release()
