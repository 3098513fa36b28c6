"""The one driver: every number about the Hessian of a subject comes from here. Needs no Trainer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_hessrank.budget import Plan
from lightning_hessrank.estimating import Ranks, estimates, planned
from lightning_hessrank.estimators import choose_method, dense_parts, estimate_rank
from lightning_hessrank.estimators.core import SketchCore
from lightning_hessrank.hessian import LossCurvature, Progress, SymmetricOperator
from lightning_hessrank.hessian.memory import memory_limit
from lightning_hessrank.hessian.pieces import Norm, Piece, Restricted, block_norms, rows_of
from lightning_hessrank.hessian.verify import SPLIT_TOLERANCE
from lightning_hessrank.opening import (
    AnyCurvature,
    by_differences,
    explained,
    opened,
    resolution_of,
    resolved,
    shared,
)
from lightning_hessrank.processes import Processes
from lightning_hessrank.results import PARTS, Method, NonFiniteError, Part, RankBound, RankEstimate
from lightning_hessrank.subject.subject import Subject

WITHOUT_LAYERS = (
    "the ranks of layers are left out: where the Hessian is estimated, each layer would take as "
    "long again; pass max_seconds=None, or a method, to have them"
)

Layers = Mapping[str, Piece]
"""Layers, or parts of them, by name."""


def measure(
    subject: Subject,
    *,
    parts: Sequence[Part] | None = None,
    method: Literal["auto"] | Method = "auto",
    rtol: float | None = None,
    bound: RankBound | None = None,
    max_rank: int | None = None,
    layers: Layers | None = None,
    norms: bool = False,
    processes: Processes | None = None,
    verify: bool = True,
    counts: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
    plan: Plan | None = None,
    max_seconds: float | None = None,
    deadline: float | None = None,
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
        norms: whether to find the Frobenius norms of the blocks between those, too: exactly where
            the method is dense, else from random vectors.
        processes: with which the loss is shared; ``None``: with none.
        verify: first compare a product with finite differences.
        counts: also at larger tolerances where that takes more time (sketch).
        seed: of random directions.
        progress: called between blocks of products.
        announce: told what is held fixed, and which method was chosen and why, before it starts.
        plan: what an earlier measurement of the same run has decided.
        max_seconds: wall time that the measurement may take: decides, where there is no plan.
        deadline: when what takes longer than expected is ended and what is known is told, as
            :func:`time.perf_counter` counts; ``None``: ``max_seconds`` from now.

    Raises:
        NonFiniteError: the loss or a Hessian is not finite, on any process.
        WrongProductError: the products cannot be trusted.
        OutputsUnknownError: a part was asked for, and the network's output is not known.
        UnresolvedError: the method, or the error of products that are differences of gradients,
            does not tell the rank at this tolerance.
        ProcessFailedError: another process failed; call this within its ``together()``.
    """
    processes = processes or Processes()
    if deadline is None and max_seconds is not None:
        deadline = time.perf_counter() + max_seconds
    if plan is None and method == "auto" and max_seconds is not None:
        plan = planned(subject, processes, max_seconds, rtol=rtol, bound=bound, max_rank=max_rank)
        if announce is not None:
            announce(plan.sentence)
    if plan is not None and plan.method == "lanczos":
        return estimates(
            subject,
            plan,
            rtol=rtol,
            parts=parts,
            processes=processes,
            verify=verify,
            seed=seed,
            progress=progress,
            announce=announce,
            deadline=deadline,
            notes=[WITHOUT_LAYERS] if layers else [],
        )
    method = method if plan is None else plan.method
    with opened(
        subject, processes, verify=verify, seed=seed, differences=True, announce=announce
    ) as curvature:
        resolution = resolution_of(curvature, processes)
        rtol = resolved(rtol, resolution)
        known, unexplained = explained(curvature, subject, processes, parts, seed=seed)
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
                shared(operator, processes),
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
        if method == "dense" and whole and isinstance(curvature, LossCurvature):
            found = dense_parts(operators, rtol=rtol, memory_limit=memory, progress=progress)
        else:
            found = {part: rank(operators[part], part, limits[part]) for part in wanted}
        blocks = {
            name: rank(_block(curvature, piece), "total", None)
            for name, piece in (layers or {}).items()
        }
        between: dict[tuple[str, str], Norm] = {}
        if norms and layers:
            between = _norms(
                curvature, layers, processes, exact=method == "dense", seed=seed, progress=progress
            )
        if resolution:
            found = {part: by_differences(x, resolution) for part, x in found.items()}
            blocks = {name: by_differences(x, resolution) for name, x in blocks.items()}
        loss = sum(processes.gather(curvature.loss))
        doubts = [x.doubt for x in found.values() if x.doubt][:1]  # of the total before its parts
        notes = (*subject.doubts, *doubts)
        samples = subject.total_samples
        return Ranks(found, blocks, loss, samples, unexplained, plan, notes, between)


def _block(curvature: AnyCurvature, piece: Piece) -> SymmetricOperator:
    """The diagonal block of a piece: of whole parameters, or of some rows of these."""
    operator = curvature.operator("total", tuple(piece))
    if all(rows == slice(None) for rows in piece.values()):
        return operator
    named = zip(curvature.names, curvature.parameters, strict=True)
    own = {name: x for name, x in named if name in piece}
    return Restricted(operator, rows_of(piece, own))


def _norms(
    curvature: AnyCurvature,
    layers: Layers,
    processes: Processes,
    *,
    exact: bool,
    seed: int,
    progress: Progress | None,
) -> dict[tuple[str, str], Norm]:
    """Norms of the blocks between pieces, by their names."""
    named = dict(zip(curvature.names, curvature.parameters, strict=True))
    names = list(layers)
    found = block_norms(
        shared(curvature.operator("total"), processes),
        [rows_of(layers[name], named) for name in names],
        exact=exact,
        seed=seed,
        progress=progress,
    )
    return {(names[i], names[j]): norm for (i, j), norm in found.items()}


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


def _limits(bound: RankBound | None, max_rank: int | None) -> dict[Part, int | None]:
    """Ranks that the parts cannot exceed, where a theorem or the caller says so."""
    if bound is None or not bound.is_theorem:
        return dict.fromkeys(PARTS, max_rank)
    return {"total": bound.total, "outer": bound.outer, "functional": bound.functional}
