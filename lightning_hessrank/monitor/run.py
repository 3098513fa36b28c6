"""The measurements of one run: reference data, bound, and one measurement after the other.

Knows what a trainer says of itself (step, epoch, processes), but nothing of hooks and schedules.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from lightning_hessrank.bounding import reference_batch_bound, reference_bound
from lightning_hessrank.hessian import NonFiniteError
from lightning_hessrank.hessian.verify import SPLIT_TOLERANCE
from lightning_hessrank.measure import Ranks, measure
from lightning_hessrank.monitor.failures import Failures, cause_of
from lightning_hessrank.monitor.log import logger
from lightning_hessrank.monitor.progress import progress_bar
from lightning_hessrank.monitor.reference import ReferenceData, as_batches, collect, deal, share
from lightning_hessrank.monitor.series import Series
from lightning_hessrank.monitor.settings import Settings
from lightning_hessrank.network.batches import cut_batch
from lightning_hessrank.processes import Processes
from lightning_hessrank.results import (
    LayerRank,
    Measurement,
    RankBound,
    RankEstimate,
    nan_estimate,
)
from lightning_hessrank.subject.cutting import cut_samples
from lightning_hessrank.subject.step import module_step
from lightning_hessrank.subject.subject import Subject

#: Spectral gap from which on a rank is clear-cut enough to contradict a bound.
CLEAR_GAP = 1e3


class Session:
    """Measures one run.

    Args:
        settings: what to measure, and how.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.series = Series(settings.meaning)
        self.failures = Failures(settings.on_error)
        self.processes = Processes()
        self._without_bound = ""

    def join(self, trainer: Any, module: Any) -> None:
        """Find out which processes measure together, and whether there is a loss to measure.

        Raises:
            UnsupportedStrategyError: the module is not whole on every one of them.
            ManualOptimizationError, UnusableStepError: its step is not a function of a batch.
        """
        self.processes = Processes.of(trainer)
        module_step(module, self._settings.loss_fn)
        self.series.restore_reference(self.processes)

    def collect_reference(self, module: Any, first_batch: Any) -> None:
        """Collect reference data, unless the run has them already.

        Args:
            module: whose transfer hooks the user's own data go through.
            first_batch: of training; ``None`` where there is none at hand.

        Raises:
            ValueError: there are none.
            ProcessFailedError: there are none on some process.
        """
        series, processes, settings = self.series, self.processes, self._settings
        if series.reference is not None:
            return
        cut = partial(self._cut, module)
        with processes.together():
            if settings.data is None and first_batch is None:
                raise ValueError(
                    "training_step(dataloader_iter) fetches its own batches; pass data=... (a "
                    "batch or a DataLoader) to the monitor"
                )
            if settings.data is None:
                most = share(settings.max_samples, processes)
                kept = collect([first_batch], most, size=settings.batch_size, cut=cut)
            else:
                batches = as_batches(settings.data, module._apply_batch_transfer_handler)
                kept = collect(
                    batches,
                    settings.max_samples,
                    seed=settings.seed,
                    size=settings.batch_size,
                    cut=cut,
                )
                kept = deal(kept, settings.max_samples, processes)
            series.reference = ReferenceData.gather(kept, processes)
        if series.is_on_other_data():
            self.failures.warn_once(
                "the reference data differ from those of the run that is resumed, so ranks before "
                "and after this point are not comparable; pass the same data=... to the monitor"
            )

    def _cut(self, module: Any, batch: Any, samples: int) -> Any:
        """Keep some samples of a batch, or all where they cannot be told apart; say so."""
        size = self._settings.batch_size
        try:
            step = module_step(module, self._settings.loss_fn)
            trainer = getattr(module, "_trainer", None)
            found = cut_samples(module, step, batch, samples, size=size, trainer=trainer)
        except Exception:  # what the step raises is said when it is measured
            return cut_batch(batch, samples, size)
        if found.reason is not None:
            self.failures.warn_once(
                f"the reference batch is taken whole, not cut to max_samples={samples}: "
                f"{found.reason}; pass batch_size=... if its number of samples is not "
                f"{found.size}, or data=... with smaller batches"
            )
        return found.batch

    def affordable(self, max_overhead: float | None) -> bool:
        """Whether the time budget allows a measurement now; all processes decide alike."""
        if max_overhead is None or not self.series.history:
            return True
        projected = self.processes.first(self.series.clock.projected_overhead())
        return projected < max_overhead

    def take(self, trainer: Any, module: Any, epoch: int) -> Measurement:
        """Measure the module as it is now.

        Args:
            trainer: of the run.
            module: the live one.
            epoch: index of the one last trained in; the trainer's is one ahead after the last.

        Raises:
            Exception: whatever went wrong; with several processes, on any of them.
        """
        series = self.series
        began = time.perf_counter()
        with (
            series.clock.measuring(),
            self.processes.together(),
            self._subject(trainer, module) as subject,
        ):
            self._seek_bound(trainer, module, subject)
            ranks = self._measure(trainer, subject)
            finite = not math.isnan(ranks.total.rank)
            batch_bound = self._batch_bound(trainer, module, subject) if finite else None
        return Measurement(
            step=trainer.global_step,
            epoch=epoch,
            total=ranks.total,
            outer=ranks.parts.get("outer"),
            functional=ranks.parts.get("functional"),
            bound=self._applicable_bound(ranks),
            batch_bound=batch_bound,
            layers=_layer_ranks(ranks, series.bound),
            loss=ranks.loss,
            seconds=time.perf_counter() - began,
            overhead=series.clock.overhead(),
            skipped=series.skipped,
        )

    def _measure(self, trainer: Any, subject: Subject) -> Ranks:
        series, settings = self.series, self._settings
        method, rtol = series.meaning["method"], series.meaning["rtol"]
        rtol = series.difference_rtol if rtol is None else rtol
        shown = settings.progress_bar and trainer.is_global_zero and _shows_progress(trainer)
        try:
            with progress_bar(shown, f"{settings.name} rank") as progress:
                ranks = measure(
                    subject,
                    method=method,
                    rtol=rtol,
                    bound=series.bound,
                    layers=_layers(subject) if settings.layers else None,
                    processes=self.processes,
                    # without a check there is no telling that products must be differences
                    verify=not series.verified or series.difference_rtol is not None,
                    seed=settings.seed,
                    progress=progress,
                    announce=partial(logger.info, "%s: %s", settings.name),
                )
        except NonFiniteError as error:
            self.failures.warn_once(
                f"the rank is nan, first at step {trainer.global_step}: {error}", about=str(error)
            )
            return Ranks({"total": nan_estimate(subject.num_parameters, method=method, rtol=rtol)})
        if subject.doubt is not None:
            self.failures.warn_once(subject.doubt)
        if len(ranks.parts) == 1:
            self.failures.warn_once(
                "the total rank only, without parts and bound: no known loss function was seen in "
                "the step, nor results of modules through which all of the loss depends on the "
                "parameters, so the output of the network is unknown; return "
                '{"loss": loss, "output": output} from training_step or loss_fn, or use a loss of '
                "torch.nn.functional"
            )
        elif self._without_bound:  # said after all, for what cannot be measured has no bound either
            self.failures.warn_once(self._without_bound)
        if not series.verified and subject.has_initial_statistics():
            logger.info(
                "%s: batch norm is measured in evaluation mode, at step %d with the initial values "
                "of its running statistics (module_mode='train' uses those of the batch)",
                settings.name,
                trainer.global_step,
            )
        series.meaning["method"] = ranks.total.method
        if ranks.total.products == "differences":
            series.difference_rtol = ranks.total.rtol
        series.verified = True
        return ranks

    @contextmanager
    def _subject(self, trainer: Any, module: Any, *, everyone: bool = False) -> Iterator[Subject]:
        """Copy the module, for this process's batches or for those of all."""
        reference = self.series.reference
        assert reference is not None
        subject = Subject(
            module,
            reference.everyone if everyone and reference.everyone else reference.batches,
            module_step(module, self._settings.loss_fn),
            training=None if self.series.meaning["module_mode"] == "train" else False,
            seed=self._settings.seed,
            trainer=trainer,
            total_samples=reference.num_samples,
        )
        try:
            yield subject
        finally:
            subject.release()

    def _seek_bound(self, trainer: Any, module: Any, subject: Subject) -> None:
        """Find the linear bound at the first measurement; it is constant within a run."""
        series = self.series
        if series.bound_sought:
            return
        subject.evaluate(subject.batches[0])  # what the step itself raises is no fault of the bound
        series.bound_sought = True
        series.bound, self._without_bound = self._bound_of_all(
            trainer, module, subject, reference_bound, "a bound"
        )

    def _batch_bound(self, trainer: Any, module: Any, subject: Subject) -> RankBound | None:
        """Find the bound that holds at these weights on these data."""
        bound, trouble = self._bound_of_all(
            trainer, module, subject, reference_batch_bound, "the batch bound"
        )
        if trouble:
            self.failures.warn_once(trouble)
        return bound

    def _bound_of_all(
        self,
        trainer: Any,
        module: Any,
        subject: Subject,
        find: Callable[[Subject], RankBound],
        what: str,
    ) -> tuple[RankBound | None, str]:
        """Bound the rank on the reference data of all processes; every one finds it for itself.

        Returns:
            The bound, or what is to be said because there is none.
        """
        assert self.series.reference is not None
        if self.series.reference.everyone is None:
            return None, (
                f"the rank is logged without {what}: the reference data of all processes together "
                "are too large to be gathered; reduce max_samples"
            )
        try:
            if self.processes.count == 1:
                return find(subject), ""
            with self._subject(trainer, module, everyone=True) as union:
                return find(union), ""
        except Exception as error:  # whatever the module does to it, the rank can be measured
            return None, f"the rank is logged without {what}: {cause_of(error)}"

    def _applicable_bound(self, ranks: Ranks) -> RankBound | None:
        """Return the bound, marked where the loss has a part that it does not know of."""
        bound = self.series.bound
        if ranks.unexplained <= SPLIT_TOLERANCE:
            return self._uncontradicted(bound, ranks.total)
        reason = (
            "the loss has a part that does not pass through the network's output (a weight "
            "penalty, or a loss function that was not recognised), to which no bound applies"
        )
        self.failures.warn_once(
            f"{reason}; the total rank includes it. Pass loss_fn=... to measure the data loss alone"
        )
        return None if bound is None else replace(bound, is_theorem=False, reason=reason)

    def _uncontradicted(self, bound: RankBound | None, total: RankEstimate) -> RankBound | None:
        """Return the bound, no longer called a theorem where a clear-cut rank lies above it."""
        if bound is None or not bound.is_theorem or total.std_error or total.rank <= bound.total:
            return bound
        if total.gap is not None and total.gap < CLEAR_GAP:
            return bound
        reason = (
            f"the measured rank {total.rank} exceeds the bound {bound.total} that was to be a "
            "theorem, so one of them is wrong"
        )
        self.failures.warn_once(f"{reason}; please report this network to lightning-hessrank")
        return replace(bound, is_theorem=False, reason=reason)


def _layers(subject: Subject) -> dict[str, list[str]]:
    """Group the trainable parameters by the module that owns them."""
    layers: dict[str, list[str]] = {}
    for name in subject.parameters:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return layers


def _layer_ranks(ranks: Ranks, bound: RankBound | None) -> dict[str, LayerRank]:
    """Put each layer's rank beside its bound.

    A layer's diagonal block is that of the outer-product Hessian plus that of the functional one,
    whose rank its column block limits.
    """
    limits: dict[str, int] = {}
    if bound is not None and bound.outer is not None:
        limits = {x.name: min(x.num_parameters, bound.outer + x.functional) for x in bound.layers}
    return {
        name: LayerRank(block.rank, block.num_parameters, limits.get(name))
        for name, block in ranks.layers.items()
    }


def _shows_progress(trainer: Any) -> bool:
    """Whether the user lets the Trainer show a progress bar at all."""
    return getattr(trainer, "progress_bar_callback", None) is not None
