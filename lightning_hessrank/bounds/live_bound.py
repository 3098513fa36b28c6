"""The bound of a network at its weights, on given data: the smallest of those that hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from lightning_hessrank.bounds.affine import affine_bound
from lightning_hessrank.bounds.batch import batch_bound_of, read_batches
from lightning_hessrank.bounds.live import LiveBatch
from lightning_hessrank.bounds.symmetries import bound_by, find_symmetries
from lightning_hessrank.network.function import Evaluation
from lightning_hessrank.network.patience import OutOfTimeError
from lightning_hessrank.results import PARTS, BoundKind, BoundNotAvailableError, Part, RankBound

LiveKind = Literal["auto", "batch", "symmetry"]


def live_bound(
    evaluations: Sequence[Callable[[], Evaluation]],
    parameters: Mapping[str, Tensor],
    num_samples: int | None = None,
    *,
    weights: Sequence[float] | None = None,
    kind: LiveKind = "auto",
) -> RankBound:
    """Bound the ranks of the Hessian and its parts by all that is known.

    Args:
        evaluations: each runs the network on one batch and returns the scalar loss and the
            outputs, in float64, with their graph; the same values at every call.
        parameters: trainable parameters by qualified name.
        num_samples: in all batches, for the table.
        weights: of the batches in the loss; ``None``: all alike.
        kind: one kind of bound only, or ``"auto"``: the smallest, part by part.

    Raises:
        BoundNotAvailableError: there is none of this kind; the message says why.
        NonFiniteError: the loss, or an input or signal of a layer, is nan or inf.
    """
    batches = read_batches(evaluations, parameters, weights)
    if kind == "symmetry":
        return bound_by(find_symmetries(evaluations, batches, parameters), parameters, num_samples)
    bound = batch_bound_of(batches, parameters, num_samples)
    return bound if kind == "batch" else _sharpened(bound, evaluations, batches, parameters)


def _sharpened(
    bound: RankBound,
    evaluations: Sequence[Callable[[], Evaluation]],
    batches: Sequence[LiveBatch],
    parameters: Mapping[str, Tensor],
) -> RankBound:
    """Take other bounds where they are smaller, as far as these apply."""
    found: dict[Part, tuple[int, BoundKind]] = {
        part: (value, bound.kind) for part in PARTS if (value := getattr(bound, part)) is not None
    }

    def offer(part: Part, value: int | None, kind: BoundKind) -> None:
        if value is not None and value < found[part][0]:
            found[part] = value, kind

    try:
        symmetries = find_symmetries(evaluations, batches, parameters)
        by_symmetry = bound_by(symmetries, parameters)
        functional = affine_bound(batches, parameters, symmetries)
    except (BoundNotAvailableError, OutOfTimeError, RuntimeError):
        return bound  # too large, or not differentiable twice
    for part in PARTS:
        offer(part, getattr(by_symmetry, part), "symmetry")
    offer("functional", functional, "affine")
    whole = found["outer"][0] + found["functional"][0]
    offer("total", whole, found["functional"][1])
    return replace(
        bound,
        kind=found["total"][1],
        explained=symmetries.explained,
        sources={part: kind for part, (_, kind) in found.items()},
        total=found["total"][0],
        outer=found["outer"][0],
        functional=found["functional"][0],
    )
