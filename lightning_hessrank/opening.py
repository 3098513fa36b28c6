"""The one way to a curvature: an undisturbed process, a finite loss, products that were checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_hessrank.hessian import LossCurvature, ReducedOperator, SymmetricOperator
from lightning_hessrank.hessian.verify import check_product, missing_derivatives_named
from lightning_hessrank.processes import Processes
from lightning_hessrank.results import NonFiniteError
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.subject import Subject


@contextmanager
def opened(
    subject: Subject, processes: Processes | None = None, *, verify: bool = True, seed: int = 0
) -> Iterator[LossCurvature]:
    """Evaluate the loss, check its products, and leave the process undisturbed.

    Every number about a Hessian passes here, so that no door can forget a check.

    Raises:
        NonFiniteError: the loss is not finite, on any process.
        WrongProductError: the products cannot be trusted.
        NoSecondDerivativeError: there are none.
    """
    with undisturbed(), missing_derivatives_named():
        yield _finite_curvature(subject, processes or Processes(), verify=verify, seed=seed)


def shared(operator: SymmetricOperator, processes: Processes) -> SymmetricOperator:
    """Sum an operator over processes, which must all ask for blocks of the same size."""
    if processes.count == 1:
        return operator
    operator.block_size = min(processes.gather(operator.block_size))
    return ReducedOperator(operator, processes.sum)


def _finite_curvature(
    subject: Subject, processes: Processes, *, verify: bool, seed: int
) -> LossCurvature:
    """Evaluate the loss; where it is not finite on one process, it is not on any."""
    trouble, curvature = None, None
    try:
        if verify:  # first, so that its graph is gone before the one that is kept
            check_product(subject.loss_function(), seed=seed)
        curvature = LossCurvature(subject.loss_function())
    except NonFiniteError as error:
        trouble = str(error)
    troubles = [text for text in processes.gather(trouble) if text is not None]
    if troubles or curvature is None:
        raise NonFiniteError(troubles[0])
    return curvature
