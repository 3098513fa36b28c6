"""One measurement of a subject: ranks of the Hessian and its parts. Needs no Trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_hessrank.estimators import dense_rank
from lightning_hessrank.live.subject import Subject
from lightning_hessrank.operators import LossCurvature
from lightning_hessrank.results import PARTS, Part, RankEstimate


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of the Hessian at one set of weights."""

    parts: dict[Part, RankEstimate]
    """``"total"`` always; the others where the network's output is known."""
    loss: float = math.nan
    """Mean loss on the reference data."""


def measure(subject: Subject, *, rtol: float | None = None) -> Ranks:
    """Measure the rank of the loss Hessian and, where possible, of its two parts.

    Raises:
        NonFiniteError: the loss or a Hessian is not finite.
    """
    curvature = LossCurvature(subject.loss_function())
    parts = PARTS if curvature.outputs_known else PARTS[:1]
    estimates = {p: dense_rank(curvature.operator(p), rtol=rtol, part=p) for p in parts}
    return Ranks(estimates, curvature.loss)
