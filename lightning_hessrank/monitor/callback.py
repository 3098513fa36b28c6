"""The callback: hooks and schedule around measurements that need no Trainer."""

from __future__ import annotations

import copy
import html
import importlib
import importlib.util
import math
import weakref
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.parameter import UninitializedParameter

from lightning_hessrank.dashboard import Dashboard, scalars
from lightning_hessrank.dashboard.link import tab_url
from lightning_hessrank.dashboard.tags import rank_tag
from lightning_hessrank.monitor.failures import HessianRankWarning
from lightning_hessrank.monitor.log import logger
from lightning_hessrank.monitor.place import Place
from lightning_hessrank.monitor.run import Run
from lightning_hessrank.monitor.series import Series
from lightning_hessrank.monitor.settings import Settings
from lightning_hessrank.monitor.stopping import StoppedError
from lightning_hessrank.monitor.table import tabulate
from lightning_hessrank.monitor.verdict import verdict, where_to_look
from lightning_hessrank.monitor.watched import stand_ins, watched_names
from lightning_hessrank.notebook import shown
from lightning_hessrank.processes import Processes, is_live
from lightning_hessrank.results import Measurement, Method
from lightning_hessrank.subject.step import LossFn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pytorch_lightning.callbacks import Callback
else:
    # `pytorch_lightning` and `lightning.pytorch` are separate class hierarchies, and each Trainer
    # insists on its own: a subclass of both is welcome everywhere.
    _HOMES = ("pytorch_lightning.callbacks", "lightning.pytorch.callbacks")
    _found = [m for m in _HOMES if importlib.util.find_spec(m.split(".")[0])]
    Callback = type("Callback", tuple(importlib.import_module(m).Callback for m in _found), {})


__all__ = ["HessianRankMonitor", "HessianRankWarning"]


class HessianRankMonitor(Callback):
    """Measure the rank of the loss Hessian of the live model while it trains.

    ``Trainer(callbacks=[HessianRankMonitor()])`` is all that it takes. Each measurement happens on
    a float64 copy of the module and leaves weights, buffers, optimisers, generators, metrics and
    flags of the run bitwise as they were.

    A module that ``ModelParallelStrategy`` shards is measured as it stands, by differences of its
    gradients in the precision that it trains in, by ``"lanczos"``, and put back bitwise, too.

    The quantity is the numerical rank of the Hessian of the mean loss over the *reference data*
    with respect to the trainable parameters, at the live weights: the number of eigenvalues beyond
    ``rtol * max|λ|``. Data, mode, method and tolerance are the same at every measurement of a run.

    It measures once before the first optimiser step, then on schedule, and at the end of ``fit`` if
    the schedule did not just fall there.

    ``trainer.callback_metrics`` holds what is logged, so that early stopping and checkpointing can
    monitor ``hessian/rank``. A stochastic count never has the name of an exact one: with
    ``method="lanczos"``, monitor ``hessian-estimate/rank``.

    Args:
        every_n_epochs: measure at the end of every n-th training epoch. ``None``: 1, unless
            ``every_n_steps`` is given, which replaces the epoch schedule.
        every_n_steps: measure after every n-th optimiser step.
        method: ``"dense"``, ``"sketch"``, ``"lanczos"``, or ``"auto"``: cost and memory decide at
            the first measurement, once for the run.
        rtol: relative tolerance of the headline rank, in [0, 1). ``None``: machine precision
            ``p * eps`` for dense and sketch, 1e-3 for lanczos. Counts at 1e-1 … 1e-6 are always
            taken besides.
        data: reference data: a batch as ``training_step`` takes it, a ``DataLoader``, or ``None``
            for a copy of the first training batch.
        max_samples: use at most so many samples of the reference data; ``None``: all.
        batch_size: number of samples in a reference batch, where it cannot be read off its tensors
            (their first dimension, as a rule). A batch that cannot be cut to ``max_samples``
            (graphs, sequences first in time) is taken whole, which is said.
        loss_fn: ``loss_fn(module, batch) -> scalar``, a mean over samples, called with the copy of
            the module; ``None``: the module's own ``training_step``.
        module_mode: ``"eval"`` (dropout off, running statistics of batch norm) or ``"train"``
            (every submodule in the mode that training has it in, with randomness frozen to one
            draw).
        layers: also measure the rank of each layer's diagonal block of the Hessian; ``"fine"``: of
            query, key and value of :class:`torch.nn.MultiheadAttention` and of the gates of
            recurrent layers each by itself, and the Frobenius norms of the blocks between all of
            these (exact where the method is dense, else estimates).
        max_seconds: wall time that one measurement may take, everything included; ``None``: no
            limit. What it buys (method, precision, products, samples) is decided at the first
            measurement, said, and kept for the run. Exact methods come first, fewer samples last.
        max_overhead: largest share of the wall time of the run, in (0, 1), that measuring may take.
            The first measurement is exempt; a later one starts only if the share, projected with
            one more as long as the last, stays below. Those skipped are counted and logged.
        on_error: what a failed measurement does: ``"warn"`` and go on training, or ``"raise"``.
        progress_bar: show one for measurements longer than a few seconds, unless the Trainer's own
            is switched off.
        prog_bar: also show the rank in the Trainer's progress bar, like ``log(prog_bar=True)``.
        dashboard: what is written besides the scalars, e.g. ``Dashboard(figures=False)`` of
            ``lightning_hessrank.dashboard``; ``None``: everything.
        name: first part of every logged name, and of the key in checkpoints, so that several
            monitors can run side by side; without ``/``.
        save_eigenvalues: folder to which the eigenvalues of every measurement are written, as
            ``NAME-step=STEP.npz`` with arrays ``total``, ``outer``, ``functional``; made where it
            does not exist. Only ``method="dense"`` computes them.
        seed: of every random probe, and of randomness inside the step.

    Attributes:
        history: one plain dict per measurement, with ``step``, ``epoch``, ``rank``,
            ``num_parameters``, ``method``, ``rtol``, ``tolerance``, ``gap``, ``std_error``,
            ``counts`` (relative tolerance -> count), ``loss``, ``seconds``, ``overhead``,
            ``skipped``, ``num_samples``, ``module_mode`` and ``reference`` (fingerprint of the
            data). Where they apply also ``rank_lower``, ``rank_upper`` (95 % interval of an
            estimate), ``rank_outer``, ``rank_functional``, ``bound``, ``bound_outer``,
            ``bound_functional``, ``bound_is_theorem``, ``rank_over_bound``, ``batch_bound``,
            ``batch_bound_outer``, ``batch_bound_functional``, ``flat_directions`` (explained by
            symmetries, all that the outer part is flat along),
            ``measures`` (smooth companions of the rank), ``products``,
            ``ranges`` (relative tolerance -> 95 % interval of an estimate, or the range that the
            count certainly lies in), ``layers`` (name -> rank, num_parameters, bound),
            ``block_norms`` (name -> name -> norm, std_error),
            ``warnings`` (said since the record before) and ``limited_by`` (in words).

    Logged names, with ``name="hessian"``; those of estimates are of their own:

    ========================================  ======================================================
    ``hessian/rank``                          the exact rank; ``rank_outer``, ``rank_functional``
    ``hessian/rank_over_bound``               and ``rank_over_parameters``
    ``hessian/batch_bound``                   bound on these very data
    ``hessian-estimate/rank``                 a stochastic count; ``rank_outer``,
                                              ``rank_functional``, ``rank_lower``, ``rank_upper``
    ``hessian-bound/rank``                    linear bound; ``rank_outer``, ``rank_functional``,
                                              ``parameters``
    ``hessian-tolerance/rank_1e-3``           counts at 1e-1 … 1e-6 and ``rank_machine``
    ``hessian-spectrum/gap``                  and ``lambda_max``, ``lambda_min``, ``n_positive``,
                                              ``n_negative``, ``log10_tolerance``
    ``hessian-measures/trace``                and ``frobenius_norm``, ``lambda_max``,
                                              ``lambda_min``, ``entropy_rank``, ``stable_rank``,
                                              ``participation_ratio``, and others by name
    ``hessian-layers/rank/LAYER``             rank of a layer's block; ``rank_over_bound/LAYER``,
                                              ``estimate/LAYER``; ``norm/LAYER/LAYER``, Frobenius
                                              norm of the block between two
    ``hessian-data/loss``                     on the reference data, and ``samples``, their number
    ``hessian-time/seconds``                  and ``products``, ``overhead``, ``skipped``
    ========================================  ======================================================

    Example:
        >>> from lightning_hessrank import HessianRankMonitor
        >>> monitor = HessianRankMonitor(every_n_epochs=5, method="dense", max_samples=256)
        >>> monitor.history  # filled by Trainer(callbacks=[monitor]).fit(module)
        []

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has the wrong type.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        method: Method = "auto",
        rtol: float | None = None,
        data: Any = None,
        max_samples: int | None = 512,
        batch_size: int | None = None,
        loss_fn: LossFn | None = None,
        module_mode: Literal["eval", "train"] = "eval",
        layers: bool | Literal["fine"] = False,
        max_seconds: float | None = 60.0,
        max_overhead: float | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        progress_bar: bool = True,
        prog_bar: bool = False,
        dashboard: Dashboard | None = None,
        name: str = "hessian",
        save_eigenvalues: str | PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if every_n_epochs is None and every_n_steps is None:
            every_n_epochs = 1
        self.settings = Settings(
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            method=method,
            rtol=rtol,
            data=data,
            max_samples=max_samples,
            batch_size=batch_size,
            loss_fn=loss_fn,
            module_mode=module_mode,
            layers=layers,
            max_seconds=max_seconds,
            max_overhead=max_overhead,
            on_error=on_error,
            progress_bar=progress_bar,
            prog_bar=prog_bar,
            name=name,
            save_eigenvalues=save_eigenvalues,
            seed=seed,
        )
        if not isinstance(dashboard, Dashboard | None):
            raise TypeError(
                "dashboard must be None or a lightning_hessrank.dashboard.Dashboard, e.g. "
                f"Dashboard(figures=False), got {dashboard!r}"
            )
        self.dashboard = replace(dashboard or Dashboard(), name=name)
        self._owners: tuple[Any, Any] | None = None
        self._original: HessianRankMonitor | None = None
        self._follower: HessianRankMonitor | None = None
        self._begin_run()

    @property
    def history(self) -> list[dict[str, Any]]:
        """One plain dict per measurement of the run; it survives checkpoint and resume.

        Of a monitor that has not run itself, but a deep copy of it (frameworks copy callbacks):
        that of the copy which began a run last.
        """
        return self._series.history

    @property
    def _series(self) -> Series:
        own = self._run.series
        return own if own.history or self._follower is None else self._follower._series

    def plot(self) -> Figure:
        """Draw rank, counts at coarser tolerances and bound over the steps of the run so far.

        Returns:
            A ``matplotlib.figure.Figure`` that pyplot does not know, so nothing needs closing.
        """
        from lightning_hessrank.dashboard.figures import history_figure

        return shown(history_figure(self.history))

    def _repr_html_(self) -> str:
        """Show the run so far in a notebook."""
        said = html.escape(self._verdict())
        if not self.history:
            return f"<p>{said}</p>"
        table, facts = tabulate(self.history)
        return f"<p>{said}</p>{table.html()}<p>{html.escape(facts)}</p>"

    def report(self, path: str | PathLike[str], *, plotly: str | None = None) -> Path:
        """Write the run so far as one HTML page that opens without anything installed.

        Args:
            path: of the page, which is overwritten.
            plotly: address from which the page loads its drawing library when it is opened, e.g.
                ``"https://cdn.plot.ly/plotly-3.1.0.min.js"``; ``None``: it is kept in the page,
                which then needs no network, and has 5 MB.

        Returns:
            Where the page was written.
        """
        page = Path(path)
        page.write_text(self._report(plotly), encoding="utf-8")
        return page

    def _report(self, plotly: str | None = None) -> str:
        from lightning_hessrank.dashboard.tab.page import report
        from lightning_hessrank.dashboard.tab.series import run_of_history

        series, name = self._series, self.settings.name
        run = run_of_history(series.history, run=name, name=name, facts=series.about)
        return report([{**run, "details": series.details}], plotly=plotly)

    def _begin_run(self) -> None:
        self._run = Run(self.settings)
        self._first_batch_pending = True
        self._seen_step = 0
        self._epoch = 0
        self._published: set[str] = set()
        self._announced = False

    # -- schedule ------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew, unless the same Trainer goes on with the same module."""
        if stage != "fit":
            return
        owners = (weakref.ref(trainer), weakref.ref(pl_module))
        if self._owners is not None and self._owners != owners:
            self._begin_run()
        self._owners = owners
        if is_live(trainer.strategy):
            self._run.before_sharding(pl_module, trainer)
        self._follower, original = None, self._original
        while original is not None:
            original._follower, original = self, original._original

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock and the dashboard; refuse strategies that cannot be measured."""
        self._first_batch_pending = True
        failures = self._run.failures
        failures.silent = not trainer.is_global_zero
        self._run.series.clock.start()
        with failures.handled("no rank will be measured"):
            self._run.join(Processes.of(trainer), pl_module)
        with failures.handled("the dashboard could not be set up"):
            if trainer.is_global_zero:
                owners = [x for x in (pl_module, trainer.datamodule) if x is not None]
                hparams = {k: v for x in owners for k, v in x.hparams_initial.items()}
                announcement = self.dashboard.start(trainer.loggers, hparams)
                self._announced = bool(announcement)
                if announcement:
                    logger.info(announcement)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note where training begins, or goes on."""
        self._seen_step, self._epoch = trainer.global_step, trainer.current_epoch

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first batch as reference data, and measure before the first optimiser step."""
        self._epoch = trainer.current_epoch
        run = self._run
        if not self._first_batch_pending or run.failures.final:
            return
        with run.failures.handled("there are no reference data"):
            run.collect_reference(pl_module, batch)
        if any(isinstance(p, UninitializedParameter) for p in pl_module.parameters()):
            return  # lazy modules: as soon as the first step has given them a shape
        self._first_batch_pending = False
        if not run.series.history:
            self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure after every ``every_n_steps`` optimiser steps."""
        step, n = trainer.global_step, self.settings.every_n_steps
        if n and step // n > self._seen_step // n:  # several optimisers take several steps a batch
            self._measure(trainer, pl_module)
        self._seen_step = step

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure after every ``every_n_epochs`` epochs."""
        n = self.settings.every_n_epochs
        if n and (trainer.current_epoch + 1) % n == 0:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the trained network, unless that has just been done."""
        self._measure(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure again if a later callback has changed the weights at the end of training."""
        if self._run.series.last_step == trainer.global_step:
            self._measure(trainer, pl_module)
        self._sum_up(trainer)
        self._run.series.clock.stop()
        if trainer.is_global_zero and self._run.series.history:
            with self._run.failures.handled("the report could not be handed on"):
                self.dashboard.finish(trainer.loggers, self._report)
        if self._announced and self.history:
            logger.info("%s: see it at %s", self.settings.name, tab_url())

    def _sum_up(self, trainer: Any) -> None:
        """Say in one line what the run showed, and where to look."""
        self._run.failures.summarise()
        if not trainer.is_global_zero:
            return
        where = f". {where_to_look(trainer, self.state_key)}" if self.history else ""
        logger.info("%s%s", self._verdict(), where)

    def _verdict(self) -> str:
        return verdict(
            self.history,
            name=self.settings.name,
            skipped=self._run.series.skipped,
            failed=self._run.failures.failed["measurements"],
        )

    # -- one measurement -----------------------------------------------------------------------

    def _measure(self, trainer: Any, module: Any) -> None:
        """Measure, remember and log; the same weights only once."""
        run, series, failures = self._run, self._run.series, self._run.failures
        step = trainer.global_step
        if failures.final or (series.reference is None and self.settings.data is None):
            return  # the first batch was of no use, which has been said
        if not run.is_new(module, step):
            return
        measurement = None
        if run.affordable():
            with failures.handled(f"no rank was measured at step {step}", among="measurements"):
                run.collect_reference(module, None)  # a loader may have recovered by now
                try:
                    measurement = run.take(module, Place.of(trainer, self._epoch))
                except StoppedError as stopped:
                    logger.info(
                        "%s: not measured at step %d: %s", self.settings.name, step, stopped
                    )
                    return
                series.add(measurement)
            if measurement is not None and trainer.is_global_zero:
                with failures.handled("eigenvalues were not saved"):
                    run.save_spectra(measurement)
        else:
            series.skipped += 1
            self._say_that_the_budget_is_spent(step)
        series.last_step = step
        with failures.handled("what was measured could not be logged", among="attempts to log"):
            self._log(trainer, measurement)

    def _say_that_the_budget_is_spent(self, step: int) -> None:
        if self._run.series.skipped == 1 and not self._run.failures.silent:
            logger.info(
                "%s: the measurement at step %d is skipped: with it, measuring would take more "
                "than max_overhead=%g of the time; later ones are made as training catches up",
                self.settings.name,
                step,
                self.settings.max_overhead,
            )

    def _log(self, trainer: Any, measurement: Measurement | None) -> None:
        """Log a measurement, or that there was none."""
        name, step = self.settings.name, trainer.global_step
        if measurement is None:
            values = {f"{name}-time/skipped": float(self._run.series.skipped)}
            self._publish(trainer, values)
            for each in trainer.loggers if trainer.is_global_zero else ():
                each.log_metrics(values, step=step)
            return
        values = scalars(measurement, name)
        # an old value must not pass for one of these weights
        fresh = {**dict.fromkeys(self._published, math.nan), **values}
        self._publish(trainer, fresh | self._for_watchers(trainer, measurement, values))
        if self.settings.prog_bar:
            tag = rank_tag(measurement.total, name)
            trainer.progress_bar_metrics[tag] = float(measurement.total.rank)
        if trainer.is_global_zero:
            details = self._run.series.details
            self.dashboard.write(trainer.loggers, measurement, self.history, step, details)

    def _for_watchers(
        self, trainer: Any, measurement: Measurement, values: dict[str, float]
    ) -> dict[str, float]:
        """Serve callbacks that monitor a name which this method does not log; say so once."""
        watched, name = watched_names(trainer.callbacks), self.settings.name
        found = stand_ins(measurement, values, watched, name)
        for tag in found:
            self._run.failures.warn_once(
                f"{watched[tag]} monitors '{tag}', which method='{measurement.total.method}' does "
                f"not log; it is given '{rank_tag(measurement.total, name)}' and the like instead. "
                "Name the method (method='dense'), or monitor the other name"
            )
        return found

    def _publish(self, trainer: Any, values: dict[str, float]) -> None:
        """Let other callbacks monitor these values."""
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in values.items()})
        self._published.update(values)

    # -- state ---------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Key of this monitor's state in a checkpoint."""
        return self._generate_state_key(name=self.settings.name)

    def state_dict(self) -> dict[str, Any]:
        """Return history and reference data: builtin types and tensors only."""
        return self._run.series.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up history, reference data and settings of the run that is resumed."""
        changed = self._run.series.load_state_dict(state_dict)
        if changed:
            self._run.failures.warn_once(
                "all ranks of a run mean the same, so the resumed one goes on with "
                + ", ".join(changed)
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process."""
        return {**vars(self), "_owners": None, "_original": None, "_follower": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> HessianRankMonitor:
        """Copy, and let the copy know of whom it is, so that its history is found there."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(self.__getstate__(), memo))
        copied._original = self
        return copied
