"""One measurement of a subject: ranks of the Hessian and its parts. Needs no Trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_hessrank.estimators import dense_rank
from lightning_hessrank.live.isolation import undisturbed
from lightning_hessrank.live.processes import Processes
from lightning_hessrank.live.subject import Subject
from lightning_hessrank.live.verify import check_product, unexplained_share
from lightning_hessrank.operators import LossCurvature, NonFiniteError
from lightning_hessrank.results import PARTS, Part, RankEstimate


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of the Hessian at one set of weights."""

    parts: dict[Part, RankEstimate]
    """``"total"`` always; the others where the network's output is known."""
    loss: float = math.nan
    """Mean loss on the reference data."""
    unexplained: float = 0.0
    """Share of the Hessian that does not pass through the network's output."""


def measure(
    subject: Subject,
    *,
    rtol: float | None = None,
    processes: Processes | None = None,
    verify: bool = False,
    seed: int = 0,
) -> Ranks:
    """Measure the rank of the loss Hessian and, where possible, of its two parts.

    Args:
        subject: this process's share of the loss.
        rtol: relative tolerance of the ranks.
        processes: with which the loss is shared; ``None``: with none.
        verify: first compare a product with finite differences.
        seed: of random directions.

    Raises:
        NonFiniteError: the loss or a Hessian is not finite, on any process.
        WrongProductError: the products cannot be trusted.
        ProcessFailedError: another process failed; call this within its ``together()``.
    """
    processes = processes or Processes()
    with undisturbed():
        curvature = _finite_curvature(subject, processes)
        if verify:
            check_product(subject.loss_function(), seed=seed)
        known = all(processes.gather(curvature.outputs_known))
        unexplained = unexplained_share(curvature, seed=seed) if known else 0.0
        parts = PARTS if known else PARTS[:1]
        estimates = {p: dense_rank(curvature.operator(p), rtol=rtol, part=p) for p in parts}
        loss = sum(processes.gather(curvature.loss))
        return Ranks(estimates, loss, max(processes.gather(unexplained)))


def _finite_curvature(subject: Subject, processes: Processes) -> LossCurvature:
    """Evaluate the loss; where it is not finite on one process, it is not on any."""
    trouble, curvature = None, None
    try:
        curvature = LossCurvature(subject.loss_function())
    except NonFiniteError as error:
        trouble = str(error)
    troubles = [text for text in processes.gather(trouble) if text is not None]
    if troubles or curvature is None:
        raise NonFiniteError(troubles[0])
    return curvature
