"""One measurement of a subject: ranks of the Hessian and its parts. Needs no Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lightning_hessrank.estimators import choose_method, dense_parts, estimate_rank
from lightning_hessrank.hessian import (
    LossCurvature,
    NonFiniteError,
    Progress,
    ReducedOperator,
    SymmetricOperator,
)
from lightning_hessrank.hessian.memory import memory_limit
from lightning_hessrank.hessian.verify import (
    SPLIT_TOLERANCE,
    check_product,
    missing_derivatives_named,
    unexplained_share,
)
from lightning_hessrank.processes import Processes
from lightning_hessrank.results import PARTS, Method, Part, RankBound, RankEstimate
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.subject import Subject

Layers = Mapping[str, Sequence[str]]
"""Names of the parameters of each layer."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of the Hessian at one set of weights."""

    parts: dict[Part, RankEstimate]
    """``"total"`` always; the others where the network's output is known."""
    layers: dict[str, RankEstimate] = field(default_factory=dict)
    """Of each layer's diagonal block, where they were asked for."""
    loss: float = math.nan
    """Mean loss on the reference data."""
    unexplained: float = 0.0
    """Share of the Hessian that does not pass through the network's output."""

    @property
    def total(self) -> RankEstimate:
        """Of the Hessian itself."""
        return self.parts["total"]


def measure(
    subject: Subject,
    *,
    method: Literal["auto"] | Method = "auto",
    rtol: float | None = None,
    bound: RankBound | None = None,
    layers: Layers | None = None,
    processes: Processes | None = None,
    verify: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> Ranks:
    """Measure the rank of the loss Hessian and, where possible, of its two parts.

    Args:
        subject: this process's share of the loss.
        method: how; ``"auto"``: by the cost of a product and the memory there is.
        rtol: relative tolerance of the ranks; ``None``: the method's own.
        bound: on these ranks; where it is a theorem, a sketch needs no more products than that.
        layers: whose diagonal blocks to measure as well.
        processes: with which the loss is shared; ``None``: with none.
        verify: first compare a product with finite differences.
        seed: of random directions.
        progress: called between blocks of products.
        announce: told which method was chosen and why, before it starts.

    Raises:
        NonFiniteError: the loss or a Hessian is not finite, on any process.
        WrongProductError: the products cannot be trusted.
        NoSecondDerivativeError: there are none.
        UnresolvedError: the method cannot tell the rank at this tolerance.
        ProcessFailedError: another process failed; call this within its ``together()``.
    """
    processes = processes or Processes()
    with undisturbed(), missing_derivatives_named():
        curvature = _finite_curvature(subject, processes, verify=verify, seed=seed)
        known = all(processes.gather(curvature.outputs_known))
        unexplained = unexplained_share(curvature, seed=seed) if known else 0.0
        unexplained = max(processes.gather(unexplained))
        limits = _limits(bound if unexplained <= SPLIT_TOLERANCE else None)
        memory = min(processes.gather(memory_limit(subject.device)))
        if method == "auto":  # timed on each process alone: they may need different times
            alone = curvature.operator("total")
            chosen = choose_method(alone, max_rank=limits["total"], rtol=rtol, memory_limit=memory)
            method, reason = processes.first((chosen.method, chosen.reason))
            if announce is not None:
                announce(reason)

        def rank(operator: SymmetricOperator, part: Part, limit: int | None) -> RankEstimate:
            return estimate_rank(
                _shared(operator, processes),
                method=method,
                rtol=rtol,
                max_rank=limit,
                seed=seed,
                memory_limit=memory,
                part=part,
                progress=progress,
                counts=True,
            )

        if method == "dense" and processes.count == 1:
            parts = dense_parts(
                curvature.operators(), rtol=rtol, memory_limit=memory, progress=progress
            )
        else:
            seen = PARTS if known else PARTS[:1]
            parts = {p: rank(curvature.operator(p), p, limits[p]) for p in seen}
        blocks = {
            name: rank(curvature.operator("total", parameters), "total", None)
            for name, parameters in (layers or {}).items()
        }
        loss = sum(processes.gather(curvature.loss))
        return Ranks(parts, blocks, loss, unexplained)


def _shared(operator: SymmetricOperator, processes: Processes) -> SymmetricOperator:
    """Sum an operator over processes, which must all ask for blocks of the same size."""
    if processes.count == 1:
        return operator
    operator.block_size = min(processes.gather(operator.block_size))
    return ReducedOperator(operator, processes.sum)


def _limits(bound: RankBound | None) -> dict[Part, int | None]:
    """Ranks that the parts cannot exceed, where a theorem says so."""
    if bound is None or not bound.is_theorem:
        return dict.fromkeys(PARTS)
    return {"total": bound.total, "outer": bound.outer, "functional": bound.functional}


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
