"""Bounds of a subject: the network inside a step, seen as a function of its inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.bounds.batch import live_batch_bound
from lightning_hessrank.bounds.linear import linear_bound
from lightning_hessrank.network.batches import list_tensors, map_tensors
from lightning_hessrank.network.function import Network
from lightning_hessrank.network.losses import LossKind, ignores_shifts, known_loss
from lightning_hessrank.network.patience import OutOfTimeError, Within
from lightning_hessrank.results import BoundNotAvailableError, RankBound
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.step import StepResult
from lightning_hessrank.subject.subject import Subject


class BoundOutOfTimeError(BoundNotAvailableError):
    """A bound takes longer than it may; seeking it again would take as long."""


class BoundInputs(NamedTuple):
    """Arguments of :func:`lightning_hessrank.bounds.linear.linear_bound`."""

    network: Network
    loss: LossKind
    data: tuple[Tensor, ...]
    """All inputs of the reference data, batches joined."""


def network_of(
    run: Callable[[Any], tuple[Tensor, ...]],
    template: Any,
    size: int,
    parameters: Mapping[str, Tensor],
) -> Network:
    """See whatever runs on a batch as a function of the floating tensors in it.

    Args:
        run: takes a batch like ``template`` and returns the network's outputs.
        template: a batch, cast.
        size: samples in it.
        parameters: trainable ones by name, as ``run`` uses them.
    """

    def forward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return run(_substitute(template, size, inputs))

    return Network(forward, floating(template), parameters)


def bound_inputs(subject: Subject) -> BoundInputs:
    """See the step of a subject as a network: floating tensors of a batch in, outputs out.

    Raises:
        BoundNotAvailableError: the output is not known, or batches do not fit together.
    """
    template = subject.batches[0]
    result = subject.evaluate(template)
    if not result.outputs:
        raise BoundNotAvailableError(
            "no known loss function was seen in the step, so the network's output is unknown; "
            'return {"loss": loss, "output": output} or use a loss of torch.nn.functional'
        )
    columns = [floating(batch) for batch in subject.batches]
    shapes = {tuple(x.shape[1:] for x in column) for column in columns}
    if len(shapes) > 1:
        raise BoundNotAvailableError(
            "the batches of the reference data have samples of different shapes"
        )
    places = [output.place for output in result.outputs]

    def run(batch: Any) -> tuple[Tensor, ...]:
        # By place: where gradients with respect to the inputs are taken, floating targets pass for
        # outputs.
        at = subject.evaluate(batch).at
        assert at is not None
        try:
            return tuple(at(place) for place in places)
        except KeyError as error:
            raise BoundNotAvailableError(
                "the network's output does not depend on floating-point inputs, so that its linear "
                "surrogate, which is a function of them, has no bound (batch_bound has one)"
            ) from error

    return BoundInputs(
        network_of(run, template, subject.sizes[0], subject.parameters),
        _loss_kind(result, subject.parameters),
        tuple(torch.cat(column) for column in zip(*columns, strict=True)),
    )


def reference_bound(
    subject: Subject, max_seconds: float | None = None, *, theorem_only: bool = False
) -> RankBound:
    """Bound of the linear surrogate on the subject's own reference data.

    Args:
        subject: the network, its data and its loss.
        max_seconds: wall time after which the search ends; ``None``: no limit.
        theorem_only: whether to give up early where it would be no theorem.

    Raises:
        BoundNotAvailableError: the network has no bound; the message says why.
    """
    try:
        with undisturbed(), _patience(max_seconds):
            network, loss, data = bound_inputs(subject)
            return linear_bound(network, loss, data=data, theorem_only=theorem_only)
    except BoundNotAvailableError:
        raise
    except Exception as error:  # the step is user code, here run in a way it was not written for
        raise BoundNotAvailableError(
            f"the step could not be traced without its activations: {error}"
        ) from error


def reference_batch_bound(subject: Subject, max_seconds: float | None = None) -> RankBound:
    """Bound of the network itself on the subject's reference data, at its weights.

    Arguments as of :func:`reference_bound`.

    Raises:
        BoundNotAvailableError: the network is not covered; the message says why.
    """
    evaluations = [
        functools.partial(lambda batch: subject.evaluate(batch).loss, batch)
        for batch in subject.batches
    ]
    with undisturbed(), _patience(max_seconds):
        return live_batch_bound(evaluations, subject.parameters, sum(subject.sizes))


@contextmanager
def _patience(max_seconds: float | None) -> Iterator[None]:
    try:
        with Within(max_seconds):
            yield
    except OutOfTimeError as error:
        raise BoundOutOfTimeError(
            f"it takes longer than {max_seconds:.2g} s, what the time budget leaves for it; a "
            "larger max_seconds gives it time (rank_bound and batch_bound have no limit)"
        ) from error


def floating(batch: Any) -> tuple[Tensor, ...]:
    """Return the floating tensors of a batch that have samples."""
    return tuple(x for x in list_tensors(batch) if x.is_floating_point() and x.ndim > 0)


def _substitute(template: Any, size: int, inputs: Sequence[Tensor]) -> Any:
    """Put ``inputs`` in the place of the floating tensors; repeat the rest to as many samples."""
    replacements = iter(inputs)
    count = len(inputs[0]) if inputs else size

    def replace(x: Tensor) -> Tensor:
        if x.ndim == 0:
            return x
        if x.is_floating_point():
            return next(replacements)
        if len(x) == size and count != size:
            return x[torch.arange(count, device=x.device) % size]
        return x

    return map_tensors(template, replace)


def _loss_kind(result: StepResult, parameters: Mapping[str, Tensor]) -> LossKind:
    dims = {
        output.class_dim
        if output.class_dim is not None
        and ignores_shifts(result.loss, output.tensor, output.class_dim, parameters)
        else None
        for output in result.outputs
    }
    names = {output.loss for output in result.outputs}
    return LossKind(
        "+".join(sorted(names)),
        class_dim=dims.pop() if len(dims) == 1 else None,
        identity_curvature=all(
            output.place.kind == "loss" and known_loss(output.loss).identity_curvature
            for output in result.outputs
        ),
    )
