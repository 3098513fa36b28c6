"""The measurements of one run, of whatever module it shows, wherever it stands.

Knows nothing of a Trainer, of hooks and of schedules: the callback and the command line do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning_hessrank.budget import ALWAYS_DENSE
from lightning_hessrank.estimating import Ranks
from lightning_hessrank.hessian import NonFiniteError
from lightning_hessrank.measure import measure
from lightning_hessrank.monitor.bounds import Bounds, layer_ranks
from lightning_hessrank.monitor.checks import check_subject
from lightning_hessrank.monitor.failures import Failures
from lightning_hessrank.monitor.log import logger
from lightning_hessrank.monitor.place import Place
from lightning_hessrank.monitor.progress import progress_bar
from lightning_hessrank.monitor.reference import ReferenceData, as_batches, collect, deal, share
from lightning_hessrank.monitor.series import Series
from lightning_hessrank.monitor.settings import Settings
from lightning_hessrank.monitor.sharding import Unsharded, check_settings, live_module
from lightning_hessrank.monitor.spectra import save_spectra
from lightning_hessrank.monitor.stopping import obeying_sigterm
from lightning_hessrank.network.batches import cut_batch, fingerprint
from lightning_hessrank.network.pieces import fine_pieces, layer_pieces
from lightning_hessrank.processes import Processes
from lightning_hessrank.results import (
    BoundNotAvailableError,
    Measurement,
    RankBound,
    nan_estimate,
)
from lightning_hessrank.sharded.estimate import sharded_ranks
from lightning_hessrank.sharded.shards import local_part
from lightning_hessrank.subject.cutting import cut_samples
from lightning_hessrank.subject.step import module_step
from lightning_hessrank.subject.subject import Subject

#: Share of the time budget that each of the bounds has in any case, and that one evaluation may
#: take where a step is only looked at: of a step that takes longer, on fewer samples.
BOUND_SHARE, CHECK_SHARE = 0.2, 0.01


class _Findings(NamedTuple):
    ranks: Ranks
    bound: RankBound | None = None
    batch_bound: RankBound | None = None


class Run:
    """Measures one run: the same quantity on the same data, each time that it is asked.

    Args:
        settings: what to measure, and how.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.series = Series(settings.meaning, settings.asked)
        self.failures = Failures(settings.on_error)
        self.processes = Processes()
        self._bounds = Bounds(self.series, self.failures)
        self._deadline: float | None = None
        self._unsharded: Unsharded | None = None
        self._was_cut = False
        """Whether samples of a batch were left out of the reference data."""

    def before_sharding(self, module: Any, trainer: Any) -> None:
        """Keep a copy of a module that is about to be sharded, for its bound."""
        if not self.series.bound_sought:
            self._unsharded = Unsharded(module, trainer)

    def join(self, processes: Processes, module: Any) -> None:
        """Say which processes measure together, and check that there is a loss to measure.

        Raises:
            ManualOptimizationError, UnusableStepError: the step is not a function of a batch.
            UnsupportedStrategyError: shards cannot be measured as the settings want it.
        """
        if processes.sharded:
            check_settings(self._settings)
        self.processes = processes
        module_step(module, self._settings.loss_fn)
        self.series.restore_reference(processes.data)

    def collect_reference(self, module: Any, first_batch: Any) -> None:
        """Collect reference data, unless the run has them already.

        Args:
            module: whose transfer hooks the user's own data go through.
            first_batch: of training; ``None`` where there is none at hand.

        Raises:
            ValueError: there are none.
            ProcessFailedError: there are none on some process.
        """
        series, processes, settings = self.series, self.processes.data, self._settings
        series.restore_reference(processes)  # some strategies load checkpoints late
        if series.reference is not None:
            return
        keep = partial(collect, size=settings.batch_size, cut=partial(self._cut, module))
        with self.processes.together():
            if settings.data is None and first_batch is None:
                raise ValueError(
                    "training_step(dataloader_iter) fetches its own batches; pass data=... (a "
                    "batch or a DataLoader) to the monitor"
                )
            if settings.data is None:
                kept = keep([first_batch], share(settings.max_samples, processes))
            else:
                batches = as_batches(settings.data, module._apply_batch_transfer_handler)
                kept = keep(batches, settings.max_samples, seed=settings.seed)
                kept = deal(kept, settings.max_samples, processes, keep)
            series.reference = ReferenceData.gather(kept, processes)
            series.reference.is_cut = self._was_cut
        if series.is_on_other_data():
            self.failures.warn_once(
                "the reference data differ from those of the run that is resumed, so ranks before "
                "and after this point are not comparable; pass the same data=... to the monitor"
            )

    def _cut(self, module: Any, batch: Any, samples: int) -> Any:
        """Keep some samples of a batch, or all where they cannot be told apart; say so.

        A sharded module cannot be copied for that (trying to is slow): it is taken at its word.
        """
        size, self._was_cut = self._settings.batch_size, True
        if self.processes.sharded:
            return cut_batch(batch, samples, size)
        try:
            step = module_step(module, self._settings.loss_fn)
            trainer = getattr(module, "_trainer", None)
            found = cut_samples(module, step, batch, samples, size=size, trainer=trainer)
        except Exception:  # what the step raises is said when it is measured
            return cut_batch(batch, samples, size)
        if found.reason is not None:
            self._was_cut = False
            self.failures.warn_once(
                f"the reference batch is taken whole, not cut to max_samples={samples}: "
                f"{found.reason}; pass batch_size=... if its number of samples is not "
                f"{found.size}, or data=... with smaller batches"
            )
        return found.batch

    def is_new(self, module: Any, step: int) -> bool:
        """Whether a module is not what was last measured: at another step, or with other weights.

        Weights may change without a step of the optimiser (averages that are swapped in at the
        end). All processes decide alike.
        """
        series = self.series
        before, series.last_weights = series.last_weights, weights_of(module)
        if series.last_step != step:
            return True
        return any(self.processes.gather(before not in {None, series.last_weights}))

    def affordable(self) -> bool:
        """Whether the time budget allows a measurement now; all processes decide alike."""
        limit = self._settings.max_overhead
        if limit is None or not self.series.history:
            return True
        return self.processes.first(self.series.clock.projected_overhead()) < limit

    def take(self, module: Any, place: Place) -> Measurement:
        """Measure a module as it is now; ``series.add`` remembers it.

        Args:
            module: the live one.
            place: where the run stands.

        Raises:
            StoppedError: the process was told to end.
            Exception: whatever went wrong; with several processes, on any of them.
        """
        series, limit = self.series, self._settings.max_seconds
        began = time.perf_counter()
        self._deadline = None if limit is None else began + limit
        with obeying_sigterm(), series.clock.measuring(), self.processes.together():
            of = self._of_shards if self.processes.sharded else self._of_copy
            ranks, bound, batch_bound = of(module, place)
        weight_decay, rate = place.optimiser()
        return Measurement(
            step=place.step,
            epoch=place.epoch,
            total=ranks.total,
            outer=ranks.parts.get("outer"),
            functional=ranks.parts.get("functional"),
            bound=bound,
            batch_bound=batch_bound,
            layers=layer_ranks(ranks, series.bound),
            block_norms=dict(ranks.norms),
            loss=ranks.loss,
            seconds=time.perf_counter() - began,
            overhead=series.clock.overhead(),
            skipped=series.skipped,
            num_samples=ranks.num_samples,
            module_mode=series.meaning["module_mode"],
            warnings=self.failures.report(),
            weight_decay=weight_decay,
            gradient_descent_rate=rate,
        )

    def save_spectra(self, measurement: Measurement) -> None:
        """Write the eigenvalues of a measurement, if that was asked for.

        Raises:
            ValueError: the method gives none.
            OSError: they cannot be written.
        """
        folder = self._settings.save_eigenvalues
        if folder is not None and not math.isnan(measurement.total.rank):
            save_spectra(Path(folder), measurement, self._settings.name)

    def _before_the_batch_bound(self) -> float | None:
        """When the ranks are due, so that a batch bound has its share of the time."""
        limit = self._settings.max_seconds
        if limit is None or self._deadline is None or self._bounds.batch_takes_too_long:
            return self._deadline
        return self._deadline - BOUND_SHARE * limit

    def _left(self, least: float | None) -> float | None:
        """Seconds that are left for a batch bound; its share, even where the rank took all."""
        if self._deadline is None or least is None:
            return None
        return max(self._deadline - time.perf_counter(), least)

    def _bound_share(self, num_parameters: int) -> float | None:
        """Seconds that each bound has in any case.

        All of them where the network is so small that it is measured exactly whatever the clock
        says: what is told of it does not depend on how busy the machine is.
        """
        if num_parameters <= ALWAYS_DENSE:
            return self._settings.max_seconds
        return self._share(BOUND_SHARE)

    def _share(self, share: float) -> float | None:
        """Some of the time budget, in seconds, if there is one."""
        limit = self._settings.max_seconds
        return None if limit is None else share * limit

    def _of_copy(self, module: Any, place: Place) -> _Findings:
        """Measure an isolated copy, of which this process holds the whole."""
        with self._subject(module, place) as subject:
            union = partial(self._union, module, place, subject)
            few = subject.quick(self._share(CHECK_SHARE))
            check_subject(few, self.series, self.failures, step=place.step)
            seconds = self._bound_share(subject.num_parameters)
            self._bounds.seek(union, seconds)
            ranks = self._ranks(subject, place, self._before_the_batch_bound())
            batch_bound = None
            if not math.isnan(ranks.loss):
                batch_bound = self._bounds.of_batch(union, self._left(seconds))
        return _Findings(ranks, self._bounds.applicable(ranks), batch_bound)

    def _of_shards(self, module: Any, place: Place) -> _Findings:
        """Measure the live module, of which every process holds its shards."""
        series, settings = self.series, self._settings
        live = live_module(
            module,
            place,
            settings=settings,
            series=series,
            failures=self.failures,
            processes=self.processes,
        )
        self._seek_unsharded(module, place)
        make_bar = place.make_bar if settings.progress_bar else None
        try:
            with progress_bar(make_bar, f"{settings.name} rank") as progress:
                ranks = sharded_ranks(
                    live,
                    rtol=series.meaning["rtol"],
                    plan=series.plan,
                    max_seconds=settings.max_seconds,
                    deadline=self._deadline,
                    verify=not series.verified,
                    seed=settings.seed,
                    progress=progress,
                    announce=self._announce,
                )
        except NonFiniteError as error:
            return _Findings(self._not_finite(error, place, live.rows.dim))
        if self._bounds.missing:
            self.failures.warn_once(self._bounds.missing)
        self._settle(ranks)
        return _Findings(ranks, self._bounds.applicable(ranks))

    def _seek_unsharded(self, module: Any, place: Place) -> None:
        """Seek the bound of the architecture in the copy from before the module was sharded."""
        unsharded, self._unsharded = self._unsharded or Unsharded(), None
        reference = self.series.reference
        assert reference is not None
        union = partial(
            unsharded.subject,
            module,
            reference.everyone,
            self._settings.loss_fn,
            training=None if self.series.meaning["module_mode"] == "train" else False,
            trainer=place.trainer,
            total_samples=reference.num_samples,
        )
        seconds = self._bound_share(sum(x.numel() for x in module.parameters()))
        self._bounds.seek_together(union, self.processes, seconds)

    def _not_finite(self, error: NonFiniteError, place: Place, num_parameters: int) -> Ranks:
        self.failures.warn_once(
            f"the rank is nan, first at step {place.step}: {error}", about=str(error)
        )
        meaning = self.series.meaning
        unknown = nan_estimate(num_parameters, method=meaning["method"], rtol=meaning["rtol"])
        samples = None if self.series.reference is None else self.series.reference.num_samples
        return Ranks({"total": unknown}, num_samples=samples)

    def _settle(self, ranks: Ranks) -> None:
        """Say what there is to say of some ranks, and let the next ones be of the same kind."""
        for note in ranks.notes:
            self.failures.warn_once(note)
        self.series.meaning["method"] = ranks.total.method
        self.series.plan = ranks.plan
        if ranks.total.products == "differences":
            self.series.difference_rtol = ranks.total.rtol
        self.series.verified = True

    def _announce(self, text: str) -> None:
        """Log a line; the first process speaks for all."""
        if self.processes.rank == 0:
            logger.info("%s: %s", self._settings.name, text)

    def _layers(self, subject: Subject) -> dict[str, dict[str, slice]] | None:
        if self._settings.layers == "fine":
            return fine_pieces(subject.shadow, subject.parameters)
        return layer_pieces(subject.parameters) if self._settings.layers else None

    def _ranks(self, subject: Subject, place: Place, deadline: float | None) -> Ranks:
        series, settings = self.series, self._settings
        method, rtol = series.meaning["method"], series.meaning["rtol"]
        rtol = series.difference_rtol if rtol is None else rtol
        make_bar = place.make_bar if settings.progress_bar else None
        try:
            with progress_bar(make_bar, f"{settings.name} rank") as progress:
                ranks = measure(
                    subject,
                    method=method,
                    rtol=rtol,
                    bound=series.bound,
                    layers=self._layers(subject),
                    norms=settings.layers == "fine",
                    processes=self.processes,
                    # without a check there is no telling that products must be differences
                    verify=not series.verified or series.difference_rtol is not None,
                    seed=settings.seed,
                    progress=progress,
                    announce=self._announce,
                    plan=series.plan,
                    max_seconds=settings.max_seconds,
                    deadline=deadline,
                )
        except NonFiniteError as error:
            return self._not_finite(error, place, subject.num_parameters)
        self._say_what_is_missing(ranks)
        if not series.verified and subject.has_initial_statistics():
            self._announce(
                f"batch norm is measured in evaluation mode, at step {place.step} with the initial "
                "values of its running statistics (module_mode='train' uses those of the batch)"
            )
        self._settle(ranks)
        return ranks

    def _say_what_is_missing(self, ranks: Ranks) -> None:
        if len(ranks.parts) == 1:
            self.failures.warn_once(
                "the total rank only, without parts and bound: no known loss function was seen in "
                "the step, nor results of modules through which all of the loss depends on the "
                "parameters, so the output of the network is unknown; return "
                '{"loss": loss, "output": output} from training_step or loss_fn, or use a loss of '
                "torch.nn.functional"
            )
        elif self._bounds.missing:  # said after all, for what has no rank has no bound either
            self.failures.warn_once(self._bounds.missing)

    @contextmanager
    def _subject(
        self, module: Any, place: Place, batches: list[Any] | None = None
    ) -> Iterator[Subject]:
        """Copy the module, with this process's batches or those given."""
        reference = self.series.reference
        assert reference is not None
        subject = Subject(
            module,
            reference.batches if batches is None else batches,
            module_step(module, self._settings.loss_fn),
            training=None if self.series.meaning["module_mode"] == "train" else False,
            seed=self._settings.seed,
            trainer=place.trainer,
            total_samples=reference.num_samples,
        )
        try:
            yield subject
        finally:
            subject.release()

    @contextmanager
    def _union(self, module: Any, place: Place, own: Subject) -> Iterator[Subject]:
        """Give a subject on the reference data of all processes."""
        assert self.series.reference is not None
        everyone = self.series.reference.everyone
        if everyone is None:
            raise BoundNotAvailableError(
                "the reference data of all processes together are too large to be gathered; "
                "reduce max_samples"
            )
        if self.processes.count == 1:
            yield own
            return
        with self._subject(module, place, everyone) as subject:
            yield subject


def weights_of(module: Any) -> str:
    """Fingerprint of all parameters and floating buffers of a module."""
    buffers = [x for x in module.buffers() if x.is_floating_point()]
    return fingerprint([local_part(x.detach()) for x in (*module.parameters(), *buffers)])
