"""The bounds of a run: sought where they hold for the data of all, and believed with care."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from lightning_hessrank.bounding import (
    BoundOutOfTimeError,
    reference_batch_bound,
    reference_bound,
)
from lightning_hessrank.estimating import Ranks
from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.hessian.verify import SPLIT_TOLERANCE, unexplained_share
from lightning_hessrank.monitor.failures import Failures, cause_of
from lightning_hessrank.monitor.series import Series
from lightning_hessrank.processes import Processes
from lightning_hessrank.results import (
    BoundNotAvailableError,
    LayerRank,
    RankBound,
    RankEstimate,
)
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.subject import Subject
from lightning_hessrank.tolerance import CLEAR_GAP

UNEXPLAINED = (
    "the loss has a part that does not pass through the network's output (a weight penalty, or a "
    "loss function that was not recognised), to which no bound applies"
)

#: Gives a subject on the reference data of all processes.
Union = Callable[[], AbstractContextManager[Subject]]


class Bounds:
    """Seeks the bounds of one run; every process finds them for itself.

    Args:
        series: keeps the linear bound, which is constant within a run.
        failures: told what to say.
    """

    def __init__(self, series: Series, failures: Failures) -> None:
        self._series = series
        self._failures = failures
        self.missing = ""
        """What to say of the linear bound if there is none."""
        self.batch_takes_too_long = False
        """Whether a batch bound has taken too long once, so that none is sought any more."""

    def seek(self, union: Union, max_seconds: float | None) -> None:
        """Find the linear bound within some time, unless the run has sought it already."""
        if self._series.bound_sought:
            return
        self._series.bound_sought = True
        find = partial(reference_bound, max_seconds=max_seconds)
        self._series.bound, error = _found(find, union)
        self.missing = _without("a bound", error)

    def seek_together(self, union: Union, processes: Processes, max_seconds: float | None) -> None:
        """Find the linear bound in a copy of a sharded module; all take that of the first process.

        Whether all of the loss passes through the outputs is not known from the ranks there, so it
        is found on the copy.
        """
        if self._series.bound_sought:
            return
        self._series.bound_sought = True

        def find(subject: Subject) -> RankBound:
            with undisturbed():
                curvature = LossCurvature(subject.loss_function())
                if curvature.outputs_known and unexplained_share(curvature) > SPLIT_TOLERANCE:
                    raise BoundNotAvailableError(UNEXPLAINED)
            return reference_bound(subject, max_seconds)

        bound, error = _found(find, union)
        found = processes.first((bound, _without("a bound", error)))
        self._series.bound, self.missing = found

    def of_batch(self, union: Union, max_seconds: float | None) -> RankBound | None:
        """Find the bound that holds at these weights on these data, within some time.

        One that took too long is not sought again.
        """
        if self.batch_takes_too_long:
            return None
        bound, error = _found(partial(reference_batch_bound, max_seconds=max_seconds), union)
        self.batch_takes_too_long = isinstance(error, BoundOutOfTimeError)
        if error is not None:
            self._failures.warn_once(_without("the batch bound", error))
        return bound

    def applicable(self, ranks: Ranks) -> RankBound | None:
        """Return the linear bound, marked where the loss has a part that it does not know of."""
        bound = self._series.bound
        if ranks.unexplained <= SPLIT_TOLERANCE:
            return self._uncontradicted(bound, ranks.total)
        reason = UNEXPLAINED
        self._failures.warn_once(
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
        self._failures.warn_once(f"{reason}; please report this network to lightning-hessrank")
        return replace(bound, is_theorem=False, reason=reason)


def _found(
    find: Callable[[Subject], RankBound], union: Union
) -> tuple[RankBound | None, Exception | None]:
    """Return a bound, or why there is none."""
    try:
        with union() as subject:
            return find(subject), None
    except Exception as error:  # whatever the module does to it, the rank can be measured
        return None, error


def _without(what: str, error: Exception | None) -> str:
    return "" if error is None else f"the rank is logged without {what}: {cause_of(error)}"


def layer_ranks(ranks: Ranks, bound: RankBound | None) -> dict[str, LayerRank]:
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
