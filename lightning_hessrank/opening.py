"""The one way to a curvature: an undisturbed process, a finite loss, products that were checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from lightning_hessrank.estimators import UnresolvedError
from lightning_hessrank.hessian import LossCurvature, ReducedOperator, SymmetricOperator
from lightning_hessrank.hessian.differences import ASYMMETRY, DifferenceCurvature
from lightning_hessrank.hessian.verify import (
    SPLIT_TOLERANCE,
    NoSecondDerivativeError,
    WrongProductError,
    check_product,
    missing_derivatives_named,
    unexplained_share,
)
from lightning_hessrank.processes import Processes
from lightning_hessrank.results import NonFiniteError, Part, RankEstimate
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.subject import Subject

AnyCurvature = LossCurvature | DifferenceCurvature
#: Tolerance of ranks by differences, where none is asked for and their error allows it.
DIFFERENCES_RTOL = 1e-6


@contextmanager
def opened(
    subject: Subject,
    processes: Processes | None = None,
    *,
    verify: bool = True,
    seed: int = 0,
    differences: bool = False,
    announce: Callable[[str], None] | None = None,
) -> Iterator[AnyCurvature]:
    """Evaluate the loss, check its products, and leave the process undisturbed.

    Every number about a Hessian passes here, so that no door can forget a check.

    Args:
        subject: the loss.
        processes: with which it is shared.
        verify: whether to check; without, there is no telling that products must be differences,
            unless the subject says so.
        seed: of the check.
        differences: whether products may be differences of gradients where there are no others.
        announce: told what is held fixed, and whether products are differences.

    Raises:
        NonFiniteError: the loss is not finite, on any process.
        WrongProductError: the products cannot be trusted.
        NoSecondDerivativeError: there are none.
    """
    with undisturbed(), missing_derivatives_named():
        curvature, notes = _finite_curvature(
            subject, processes or Processes(), verify=verify, seed=seed, differences=differences
        )
        if announce is not None:
            for note in notes:
                announce(note)
        yield curvature


def shared(operator: SymmetricOperator, processes: Processes) -> SymmetricOperator:
    """Sum an operator over processes, which must all ask for blocks of the same size."""
    if processes.count == 1:
        return operator
    operator.block_size = min(processes.gather(operator.block_size))
    return ReducedOperator(operator, processes.sum)


def explained(
    curvature: AnyCurvature,
    subject: Subject,
    processes: Processes,
    parts: Sequence[Part] | None,
    *,
    seed: int,
) -> tuple[bool, float]:
    """Whether the network's output is known, and which share of the Hessian does not pass it.

    Only where all parts are asked for; what was asked for by name is given as it is.
    """
    known = all(processes.gather(curvature.outputs_known))
    if not known or parts is not None:
        return known, 0.0
    share = max(processes.gather(unexplained_share(curvature, seed=seed)))
    if share <= resolution_of(curvature, processes):
        return True, 0.0
    if share > SPLIT_TOLERANCE and any(processes.gather(subject.outputs_guessed)):
        return False, 0.0  # a wrong guess says nothing of the loss
    return True, share


def resolution_of(curvature: AnyCurvature, processes: Processes) -> float:
    """Smallest tolerance that the error of differences allows; zero for exact products."""
    own = curvature.resolution if isinstance(curvature, DifferenceCurvature) else 0.0
    return max(processes.gather(own))


def resolved(rtol: float | None, resolution: float) -> float | None:
    """Tolerance of the ranks where products have an error.

    Raises:
        UnresolvedError: a finer one was asked for than the error allows, or it allows none.
    """
    if not resolution:
        return rtol
    if resolution >= 1:
        raise UnresolvedError(
            "products are differences of gradients, whose error is as large as themselves here "
            "(the gradient jumps, or the Hessian is tiny), so that no count can be told"
        )
    if rtol is None:
        rtol = max(DIFFERENCES_RTOL, 10.0 ** math.ceil(math.log10(resolution)))
    if not resolution <= rtol < 1:
        raise UnresolvedError(
            "products are differences of gradients, whose error allows counts at relative "
            f"tolerances from {resolution:.1g} on, not at {rtol:.1g}; pass a larger rtol"
        )
    return rtol


def by_differences(estimate: RankEstimate, resolution: float) -> RankEstimate:
    """Label an estimate, and forget the counts that the error does not allow."""
    return replace(
        estimate,
        products="differences",
        resolution=resolution,
        counts={rtol: x for rtol, x in estimate.counts.items() if rtol >= resolution},
        ranges={rtol: x for rtol, x in estimate.ranges.items() if rtol >= resolution},
    )


def _finite_curvature(
    subject: Subject, processes: Processes, *, verify: bool, seed: int, differences: bool
) -> tuple[AnyCurvature, tuple[str, ...]]:
    """Evaluate the loss; where it is not finite on one process, it is not on any."""
    trouble: str | None = None
    curvature: AnyCurvature | None = None
    notes: tuple[str, ...] = ()
    try:
        if differences:
            curvature, notes = _any_curvature(subject, verify=verify, seed=seed)
        else:
            curvature, notes = _curvature(subject, verify=verify, seed=seed)
    except NonFiniteError as error:
        trouble = str(error)
    troubles = [text for text in processes.gather(trouble) if text is not None]
    if troubles or curvature is None:
        raise NonFiniteError(troubles[0])
    return curvature, notes


def _any_curvature(
    subject: Subject, *, verify: bool, seed: int
) -> tuple[AnyCurvature, tuple[str, ...]]:
    """Take products by autograd, or by differences where it has none."""
    if subject.once_only is None:
        try:
            return _curvature(subject, verify=verify, seed=seed)
        except NoSecondDerivativeError as error:
            subject.once_only = error.operation
    return _differences(subject, subject.once_only, seed=seed)


def _curvature(
    subject: Subject, *, verify: bool, seed: int
) -> tuple[LossCurvature, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if verify:  # first, so that its graph is gone before the one that is kept
        with missing_derivatives_named():
            notes = check_product(subject.loss_function(), seed=seed)
    return LossCurvature(subject.loss_function()), notes


def _differences(
    subject: Subject, operation: str, *, seed: int
) -> tuple[DifferenceCurvature, tuple[str, ...]]:
    """Take products from differences, unless these are not symmetric."""
    curvature = DifferenceCurvature(subject.loss_function(), seed=seed)
    if curvature.asymmetry > ASYMMETRY * curvature.error:
        raise WrongProductError(
            f"{operation} has no second derivative in PyTorch, and differences of gradients "
            f"are not symmetric (by {curvature.asymmetry:.1g}, at an error of "
            f"{curvature.error:.1g}): what this step calls its gradient is not the derivative of "
            "its loss. Pass loss_fn=... that avoids it"
        )
    return curvature, (
        f"{operation} has no second derivative in PyTorch, so products are central "
        f"differences of gradients (relative error {curvature.error:.1g}): counts are told at "
        f"relative tolerances from {curvature.resolution:.1g} on",
    )
