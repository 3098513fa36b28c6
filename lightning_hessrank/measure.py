"""The one driver: every number about the Hessian of a subject comes from here. Needs no Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_hessrank.estimators import UnresolvedError, choose_method, dense_parts, estimate_rank
from lightning_hessrank.estimators.core import SketchCore
from lightning_hessrank.hessian import (
    LossCurvature,
    NonFiniteError,
    Progress,
    ReducedOperator,
    SymmetricOperator,
)
from lightning_hessrank.hessian.differences import ASYMMETRY, DifferenceCurvature
from lightning_hessrank.hessian.memory import memory_limit
from lightning_hessrank.hessian.verify import (
    SPLIT_TOLERANCE,
    NoSecondDerivativeError,
    WrongProductError,
    check_product,
    missing_derivatives_named,
    unexplained_share,
)
from lightning_hessrank.processes import Processes
from lightning_hessrank.results import PARTS, Method, Part, RankBound, RankEstimate
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.subject import Subject

#: Tolerance of ranks by differences, where none is asked for and their error allows it.
DIFFERENCES_RTOL = 1e-6
Curvature = LossCurvature | DifferenceCurvature
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
    parts: Sequence[Part] | None = None,
    method: Literal["auto"] | Method = "auto",
    rtol: float | None = None,
    bound: RankBound | None = None,
    max_rank: int | None = None,
    layers: Layers | None = None,
    processes: Processes | None = None,
    verify: bool = True,
    counts: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> Ranks:
    """Measure the rank of the loss Hessian and, where possible, of its two parts.

    Args:
        subject: this process's share of the loss.
        parts: which; ``None``: all, as far as the network's output is known.
        method: how; ``"auto"``: by the cost of a product and the memory there is.
        rtol: relative tolerance of the ranks; ``None``: the method's own.
        bound: on these ranks; where it is a theorem, a sketch needs no more products than that.
        max_rank: a known upper bound on each of these ranks, instead.
        layers: whose diagonal blocks to measure as well.
        processes: with which the loss is shared; ``None``: with none.
        verify: first compare a product with finite differences.
        counts: also at larger tolerances where that takes more time (sketch).
        seed: of random directions.
        progress: called between blocks of products.
        announce: told what is held fixed, and which method was chosen and why, before it starts.

    Raises:
        NonFiniteError: the loss or a Hessian is not finite, on any process.
        WrongProductError: the products cannot be trusted.
        NoSecondDerivativeError: there are none.
        OutputsUnknownError: a part was asked for, and the network's output is not known.
        UnresolvedError: the method cannot tell the rank at this tolerance.
        ProcessFailedError: another process failed; call this within its ``together()``.
    """
    processes = processes or Processes()
    with opened(
        subject, processes, verify=verify, seed=seed, differences=True, announce=announce
    ) as curvature:
        known = all(processes.gather(curvature.outputs_known))
        unexplained = unexplained_share(curvature, seed=seed) if known and parts is None else 0.0
        unexplained = max(processes.gather(unexplained))
        resolution = max(processes.gather(_resolution(curvature)))
        rtol = _resolved(rtol, resolution)
        if unexplained <= resolution:
            unexplained = 0.0
        if parts is None and subject.outputs_guessed and unexplained > SPLIT_TOLERANCE:
            known, unexplained = False, 0.0  # a wrong guess says nothing of the loss
        wanted = tuple(parts or (PARTS if known else PARTS[:1]))
        operators = {part: curvature.operator(part) for part in wanted}
        limits = _limits(
            bound if unexplained <= SPLIT_TOLERANCE and not resolution else None, max_rank
        )
        memory = min(processes.gather(memory_limit(subject.device)))
        if method == "auto":  # timed on each process alone: they may need different times
            part = wanted[0]
            chosen = choose_method(
                operators[part], max_rank=limits[part], rtol=rtol, memory_limit=memory
            )
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
                counts=counts,
            )

        whole = processes.count == 1 and len(wanted) == len(PARTS)
        if method == "dense" and whole and not isinstance(curvature, DifferenceCurvature):
            found = dense_parts(curvature, rtol=rtol, memory_limit=memory, progress=progress)
        else:
            found = {part: rank(operators[part], part, limits[part]) for part in wanted}
        blocks = {
            name: rank(curvature.operator("total", parameters), "total", None)
            for name, parameters in (layers or {}).items()
        }
        if resolution:
            found = {part: _by_differences(x, resolution) for part, x in found.items()}
            blocks = {name: _by_differences(x, resolution) for name, x in blocks.items()}
        loss = sum(processes.gather(curvature.loss))
        return Ranks(found, blocks, loss, unexplained)


def hessian_matrix(
    subject: Subject,
    part: Part = "total",
    *,
    sketch_width: int | None = None,
    verify: bool = True,
    seed: int = 0,
) -> Tensor:
    """Return the Hessian of the mean loss or a part of it, or a sketch of that.

    Args:
        subject: the loss.
        part: which part.
        sketch_width: number ``k`` of Gaussian probes; ``None``: the dense matrix.
        verify: first compare a product with finite differences.
        seed: of the probes and of random directions.

    Returns:
        A symmetric ``(p, p)`` or ``(k, k)`` tensor.

    Raises:
        Exception: see :func:`measure`.
    """
    with opened(subject, verify=verify, seed=seed) as curvature:
        operator = curvature.operator(part)
        if sketch_width is None:
            matrix = operator.to_dense()
        else:
            core = SketchCore(operator, seed, memory_limit(operator.device))
            core.grow(sketch_width)
            matrix = core.matrix
        if not bool(torch.isfinite(matrix).all()):
            raise NonFiniteError(f"the {part} Hessian is not finite at a finite loss")
        return matrix


@contextmanager
def opened(
    subject: Subject,
    processes: Processes | None = None,
    *,
    verify: bool = True,
    seed: int = 0,
    differences: bool = False,
    announce: Callable[[str], None] | None = None,
) -> Iterator[Curvature]:
    """Evaluate the loss, check its products, and leave the process undisturbed.

    Every number about a Hessian passes here, so that no door can forget a check.

    Args:
        subject: the loss.
        processes: with which it is shared.
        verify: whether to check.
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


def _shared(operator: SymmetricOperator, processes: Processes) -> SymmetricOperator:
    """Sum an operator over processes, which must all ask for blocks of the same size."""
    if processes.count == 1:
        return operator
    operator.block_size = min(processes.gather(operator.block_size))
    return ReducedOperator(operator, processes.sum)


def _limits(bound: RankBound | None, max_rank: int | None) -> dict[Part, int | None]:
    """Ranks that the parts cannot exceed, where a theorem or the caller says so."""
    if bound is None or not bound.is_theorem:
        return dict.fromkeys(PARTS, max_rank)
    return {"total": bound.total, "outer": bound.outer, "functional": bound.functional}


def _finite_curvature(
    subject: Subject, processes: Processes, *, verify: bool, seed: int, differences: bool
) -> tuple[Curvature, tuple[str, ...]]:
    """Evaluate the loss; where it is not finite on one process, it is not on any."""
    trouble: str | None = None
    curvature: Curvature | None = None
    notes: tuple[str, ...] = ()
    try:
        if verify:  # first, so that its graph is gone before the one that is kept
            with missing_derivatives_named():
                notes = check_product(subject.loss_function(), seed=seed)
        curvature = LossCurvature(subject.loss_function())
    except NoSecondDerivativeError as error:
        if not differences:
            raise
        curvature, notes = _differences(subject, error, seed=seed)
    except NonFiniteError as error:
        trouble = str(error)
    troubles = [text for text in processes.gather(trouble) if text is not None]
    if troubles or curvature is None:
        raise NonFiniteError(troubles[0])
    return curvature, notes


def _differences(
    subject: Subject, error: NoSecondDerivativeError, *, seed: int
) -> tuple[DifferenceCurvature, tuple[str, ...]]:
    """Take products from differences, unless these are not symmetric."""
    curvature = DifferenceCurvature(subject.loss_function(), seed=seed)
    if curvature.asymmetry > ASYMMETRY * curvature.error:
        raise WrongProductError(
            f"{error.operation} has no second derivative in PyTorch, and differences of gradients "
            f"are not symmetric (by {curvature.asymmetry:.1g}, at an error of "
            f"{curvature.error:.1g}): what this step calls its gradient is not the derivative of "
            "its loss. Pass loss_fn=... that avoids it"
        ) from error
    return curvature, (
        f"{error.operation} has no second derivative in PyTorch, so products are central "
        f"differences of gradients (relative error {curvature.error:.1g}): counts are told at "
        f"relative tolerances from {curvature.resolution:.1g} on",
    )


def _resolution(curvature: Curvature) -> float:
    """Smallest tolerance that the error of differences allows; zero for exact products."""
    return curvature.resolution if isinstance(curvature, DifferenceCurvature) else 0.0


def _resolved(rtol: float | None, resolution: float) -> float | None:
    """Tolerance of the ranks where products have an error."""
    if not resolution:
        return rtol
    if rtol is None:
        rtol = max(DIFFERENCES_RTOL, 10.0 ** math.ceil(math.log10(resolution)))
    if not resolution <= rtol < 1:
        raise UnresolvedError(
            "products are differences of gradients, whose error allows counts at relative "
            f"tolerances from {resolution:.1g} on, not at {rtol:.1g}; pass a larger rtol"
        )
    return rtol


def _by_differences(estimate: RankEstimate, resolution: float) -> RankEstimate:
    """Label an estimate, and forget the counts that the error does not allow."""
    counts = {rtol: count for rtol, count in estimate.counts.items() if rtol >= resolution}
    return replace(estimate, products="differences", resolution=resolution, counts=counts)
